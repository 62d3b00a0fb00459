"""All that the site does beyond Markdown; its pages are made to read well in the repository too.

- A line that is nothing but a link with the title "include" becomes the file, or the section, that it points to.
- A link to a file that is no page shows that file, below ``source/``: images and JSON as they are, all else as a page.
  Behind the name of a Python file ``#name`` is the function or class of that name.
- Docstrings lose the roles before names, as in :class:`str`.
- The pictures in ``gallery/`` are drawn by the code that stands below each of them. It may name ``images``, ``clips``,
  ``spectrograms``, and for each patch of the images ``attention``, ``green`` and ``valid``.
"""

from __future__ import annotations

import io
import posixpath
import re
import sys
from functools import partial
from pathlib import Path

import griffe
import torch
import torch.nn.functional as F
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from PIL import Image
from skimage import data
from torch import Tensor
from torchvision.transforms import v2

import gmml_aug

ROOT = Path(__file__).parent.parent
INCLUDE = re.compile(r'^\[[^\]]*\]\(([^)#\s]+)(?:#([\w-]+))? "include"\)$', re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s#]*)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
CARD = re.compile(r"\]\(gallery/([\w-]+)\.jpg\).*?`(GroupMask\([^`]*\))`", re.DOTALL)
DEFINITION = re.compile(r"^((?:@[^\n]*\n(?:[ )][^\n]*\n)*)*(?:def|class) (\w+))", re.MULTILINE)
AS_THEY_ARE = (".jpg", ".png", ".json")
MEAN, STD = (torch.tensor(of).view(3, 1, 1) for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # ImageNet's

pages: dict[str, str] = {}  # the site's path of each page -> its Markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in what pages include, and add the files and pictures that they show."""
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    homes = {"README.md": "index.md"}  # the repository's path of a file -> the page on which it stands
    for uri, text in written.items():
        homes[f"docs/{uri}"] = uri
        for path, section in INCLUDE.findall(text):
            homes[posixpath.normpath(f"docs/{posixpath.dirname(uri)}/{path}") + f"#{section}" * bool(section)] = uri
    shown: dict[str, str] = {}  # the repository's path of a file that is linked -> the site's path
    for uri, text in written.items():
        pages[uri] = assembled(uri, text, homes, shown)
    for path, uri in shown.items():
        if path.endswith(AS_THEY_ARE):
            files.append(File.generated(config, uri, content=(ROOT / path).read_bytes()))
        else:
            files.append(File.generated(config, uri, content=source_page(ROOT / path, path)))
    for name, picture in drawn(written["index.md"] + written["strategies.md"]).items():
        files.append(File.generated(config, f"gallery/{name}.jpg", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give the assembled page."""
    return pages.get(page.file.src_uri, markdown)


class Plain(griffe.Extension):
    """Docstrings without the roles before names, and with examples that are shown as code."""

    def on_instance(self, *, obj: griffe.Object, **others: object) -> None:
        """Rewrite a docstring before it is read."""
        if obj.docstring:
            plain = re.sub(r":\w+:`~?(?:gmml_aug\.)?([^`]+)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = plain.replace("Example:\n", "Examples:\n")


def assembled(uri: str, text: str, homes: dict[str, str], shown: dict[str, str]) -> str:
    """Return a page with all that it includes, its links leading to pages of the site."""
    here = posixpath.join("docs", posixpath.dirname(uri))
    first, *others = INCLUDE.split(text.strip())
    parts = [relinked(first, here, uri, homes, shown)]
    for link, anchor, after in zip(others[::3], others[1::3], others[2::3], strict=True):
        path = posixpath.normpath(posixpath.join(here, link))
        taken = (ROOT / path).read_text(encoding="utf-8")
        heads = parts == [""]  # it begins the page, so its heading is the page's
        if anchor:
            taken = section(taken, anchor).removeprefix("#" * heads)
        elif not heads:
            taken = taken.split("\n", 1)[1]
        parts += [relinked(taken, posixpath.dirname(path), uri, homes, shown, path)]
        parts += [relinked(after, here, uri, homes, shown)]
    return "".join(parts)


def section(text: str, anchor: str) -> str:
    """Return the section whose heading has this anchor, up to the next heading of its rank."""
    taken, rank, code = [], 0, False
    for line in text.splitlines(keepends=True):
        code ^= line.startswith("```")
        heading = None if code else re.match(r"(#+) (.+)", line)
        if heading and rank and len(heading[1]) <= rank:
            break
        if heading and re.sub(r"[^\w\- ]", "", heading[2].lower()).replace(" ", "-") == anchor:
            rank = len(heading[1])
        if rank:
            taken.append(line)
    if not taken:
        raise ValueError(f"no section has the anchor #{anchor}")
    return "".join(taken)


def relinked(text: str, here: str, uri: str, homes: dict[str, str], shown: dict[str, str], own: str = "") -> str:
    """Return Markdown that stood in a folder of the repository for a page of the site.

    Args:
        text: the Markdown.
        here: the folder it stood in.
        uri: the page.
        homes: the page on which each file or section of the repository stands.
        shown: takes the files that are linked and are no page.
        own: the file it stood in, if that is included.
    """

    def replaced(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        path = posixpath.normpath(posixpath.join(here, link)) if link else own
        if ":" in link or not path or path.startswith(("docs/gallery/", "docs/assets/")):
            return match[0]
        if home := homes.get(path + anchor) or homes.get(path):
            return posixpath.relpath(home, posixpath.dirname(uri) or ".") + anchor
        if not (ROOT / path).exists():
            return match[0]  # MkDocs says on which page it is
        if (ROOT / path).is_dir() or not path.endswith(AS_THEY_ARE):
            shown[path] = f"source/{path}.md"
        else:
            shown[path] = f"source/{path}"
        return posixpath.relpath(shown[path], posixpath.dirname(uri) or ".") + anchor

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


def source_page(path: Path, name: str) -> str:
    """Return a page that shows a file, or lists the files of a folder; the search leaves it out."""
    head = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# {name}\n\n"
    if path.is_dir():
        return (
            head + "\n".join(f"- `{each.name}`" for each in sorted(path.iterdir()) if each.name[0] not in "._") + "\n"
        )
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return f"{head}`````text\n{text}`````\n"
    first, *others = DEFINITION.split(text)
    named = zip(others[1::3], others[::3], others[2::3], strict=True)
    return f"{head}`````python\n{first}`````\n" + "".join(
        f"\n## {name} {{ #{name} }}\n\n`````python\n{(begin + rest).rstrip()}\n`````\n" for name, begin, rest in named
    )


def drawn(page: str) -> dict[str, bytes]:
    """Return the pictures of pages: what the code below each of them makes of scikit-image's photographs."""
    sys.path.insert(0, str(ROOT / "examples"))
    import own_fill

    names = {**vars(gmml_aug), **vars(own_fill), "GroupMask": partial(gmml_aug.GroupMask, seed=9)}
    to_square = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize(224), v2.CenterCrop(224)])
    photographs = torch.stack(
        [to_square(getattr(data, name)()) for name in ("chelsea", "coffee", "astronaut", "rocket")]
    )
    names["images"] = images = (photographs - MEAN) / STD
    names["clips"] = torch.stack([images.roll(6 * t, 3) for t in range(16)], 1)
    names["spectrograms"] = spectrograms().expand(-1, 3, -1, -1)
    names["attention"] = F.avg_pool2d(images.mean(1), 16)  # the bright patches stand for what a network looks at
    noise = torch.randn(4, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    names["green"] = (F.avg_pool2d(noise, 3, 1, 1) - F.avg_pool2d(noise, 7, 1, 3))[:, 0]
    names["valid"] = (torch.arange(14).view(14, 1) + torch.arange(14) > 9).repeat(4, 1, 1)  # a corner has no data
    pictures = {}
    for name, code in CARD.findall(page):
        made = eval(code, names)
        shown: Tensor = (made(images) if isinstance(made, gmml_aug.GroupMask) else made).images
        shown = shown[0, ::15] if shown.dim() == 5 else shown[:2]
        pictures[name] = jpeg(torch.cat([*(shown * STD + MEAN)], 2))
    pictures["photograph"] = jpeg(photographs[0])
    return pictures


def spectrograms() -> Tensor:
    """Return those of two made-up sounds, a rising tone and a trill: ``(2, 1, 224, 224)``, time to the right."""
    time = torch.arange(224 * 64) / (224 * 64)
    pitch = torch.stack([20 + 60 * time, 40 + 12 * (30 * time).sin()])
    overtones = [(2 * torch.pi * n * pitch / 1024).cumsum(1).sin() / n for n in (1, 2, 3, 4)]
    sound, window = torch.stack(overtones).sum(0), torch.hann_window(1024)
    heights = torch.stft(sound, 1024, 64, window=window, return_complex=True).abs()[:, :224, :224].add(0.1).log()
    return ((heights - heights.mean()) / heights.std()).flip(1)[:, None]


def jpeg(image: Tensor) -> bytes:
    """Return a picture ``(3, H, W)`` in [0, 1] as a file."""
    file = io.BytesIO()
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()
