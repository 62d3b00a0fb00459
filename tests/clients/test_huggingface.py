"""Hugging Face: masks as `bool_masked_pos`, transforms of its data sets, and a collator for its Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from gmml_aug import GroupMask, patch_to_pixel

from .training import falls

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 4,
}


def pictures(batch: int, size: int) -> Tensor:
    torch.manual_seed(0)
    return functional.interpolate(torch.randn(batch, 3, 4, 4), size=size, mode="bilinear")


def initialised(model: Any) -> Any:
    """Give the mask token a value of its own: from a configuration alone it is zero."""
    for name, parameter in model.named_parameters():
        if "mask_token" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, encoder_stride=4)
    return initialised(transformers.ViTForMaskedImageModeling(config))


def beit() -> Any:
    torch.manual_seed(0)
    config = transformers.BeitConfig(**SMALL, use_mask_token=True, vocab_size=16)
    return initialised(transformers.BeitForMaskedImageModeling(config))


def swin() -> Any:
    """As in SimMIM: patches of 4 pixels, merged three times, so that one unit at the end is 32 pixels wide."""
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=128,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        encoder_stride=32,
        drop_path_rate=0.0,
        initializer_range=0.1,  # the usual 0.02 takes this small one longer to learn
    )
    return initialised(transformers.SwinForMaskedImageModeling(config))


def dinov2() -> Any:
    torch.manual_seed(0)
    return initialised(transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)))


@pytest.mark.parametrize("build", [vit, beit, dinov2])
def test_what_the_mask_hides_the_model_does_not_see(build: Callable[[], Any]) -> None:
    """Hugging Face puts its mask token where our mask says, so the pixels there have no say in what comes out."""
    model, images = build(), pictures(4, 32)
    corrupted, mask = GroupMask(4, (0.4, 0.7), "noise")(images)
    with torch.no_grad():
        outputs = [model(x, bool_masked_pos=mask.flatten(1), output_hidden_states=True) for x in (images, corrupted)]
        plain = [model(x, output_hidden_states=True) for x in (images, corrupted)]
    assert torch.equal(*(output.hidden_states[-1] for output in outputs))
    assert not torch.equal(*(output.hidden_states[-1] for output in plain))
    # At the first block the masked tokens, and they alone, are others than without a mask; the class token comes first.
    changed = (outputs[0].hidden_states[0] != plain[0].hidden_states[0]).any(-1)
    assert torch.equal(changed[:, 1:], mask.flatten(1))
    assert not changed[:, 0].any()


def test_vit_learns_what_was_hidden() -> None:
    model, images = vit(), pictures(4, 32)
    mask = GroupMask(4, (0.4, 0.7)).sample(images).mask
    with torch.no_grad():
        output = model(images, bool_masked_pos=mask.flatten(1))
    hidden = patch_to_pixel(mask, 4)
    error = ((output.reconstruction - images).abs() * hidden).sum() / (hidden.sum() * 3)
    torch.testing.assert_close(output.loss, error)  # the loss looks at our hidden pixels and at no other
    falls(model, lambda: model(images, bool_masked_pos=mask.flatten(1)).loss, share=0.9)


def test_vit_learns_from_corrupted_images() -> None:
    """As in GMML: no mask token; the corrupted images go in, the loss compares hidden pixels with the original."""
    model, images = vit(), pictures(4, 32)
    corrupted, mask = GroupMask(4, (0.4, 0.7), {"noise": 1, "alien": 1})(images)
    hidden = patch_to_pixel(mask, 4)

    def loss() -> Tensor:
        reconstruction = model(corrupted).reconstruction
        error: Tensor = ((reconstruction - images).abs() * hidden).sum() / (hidden.sum() * 3)
        return error

    falls(model, loss, share=0.75)


def test_beit_learns_the_visual_tokens_of_hidden_patches() -> None:
    model, images = beit(), pictures(4, 32)
    # In place of a tokenizer's: the brightness of each patch, in 16 steps.
    brightness = functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1)
    visual_tokens = brightness.mul(4).add(8).long().clamp(0, 15)
    mask = GroupMask(4, (0.4, 0.7)).sample(images).mask.flatten(1)
    falls(model, lambda: model(images, bool_masked_pos=mask, labels=visual_tokens[mask]).loss, share=0.9)


def test_dinov2_learns_a_teachers_features_of_hidden_patches() -> None:
    student, teacher, images = dinov2(), dinov2(), pictures(4, 32)
    nn.init.normal_(teacher.embeddings.position_embeddings)
    mask = GroupMask(4, (0.4, 0.7)).sample(images).mask.flatten(1)
    with torch.no_grad():
        target = teacher(images).last_hidden_state[:, 1:][mask]

    def loss() -> Tensor:
        tokens = student(images, bool_masked_pos=mask).last_hidden_state[:, 1:]
        return functional.mse_loss(tokens[mask], target)

    falls(student, loss, share=0.5)


def test_swin_is_hidden_in_units_of_32_pixels() -> None:
    model, images = swin(), pictures(4, 128)
    corrupted, mask = GroupMask(patch_size=32, ratio=0.5, fill="noise")(images)
    assert mask.shape == (4, 4, 4)
    bool_masked_pos = patch_to_pixel(mask, 32 // model.config.patch_size).flatten(1)
    assert bool_masked_pos.shape == (4, (128 // 4) ** 2)
    with torch.no_grad():
        outputs = [model(x, bool_masked_pos=bool_masked_pos) for x in (images, corrupted)]
        plain = [model(x) for x in (images, corrupted)]
    assert torch.equal(*(output.reconstruction for output in outputs))
    assert not torch.equal(*(output.reconstruction for output in plain))
    hidden = patch_to_pixel(mask, 32)
    error = ((outputs[0].reconstruction - images).abs() * hidden).sum() / (hidden.sum() * 3)
    torch.testing.assert_close(outputs[0].loss, error)
    falls(model, lambda: model(images, bool_masked_pos=bool_masked_pos).loss, share=0.75, lr=1e-3)


def data_set(images: int = 8, size: int = 32) -> Any:
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    pixels = torch.randint(1, 256, (images, size, size, 3), dtype=torch.uint8).numpy()
    return datasets.Dataset.from_dict({"image": [image.fromarray(p) for p in pixels], "number": list(range(images))})


def as_tensors(images: list[Any]) -> Tensor:
    to_tensor = pytest.importorskip("torchvision.transforms.v2.functional").pil_to_tensor
    return torch.stack([to_tensor(image) for image in images])


def test_datasets_set_transform_masks_image_by_image() -> None:
    data = data_set()
    originals = as_tensors(data["image"])
    corrupt = GroupMask(8, 0.5, "zeros")

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images, masks = zip(*(corrupt(image) for image in as_tensors(rows["image"])), strict=True)
        return {"pixel_values": list(images), "mask": list(masks), "number": rows["number"]}

    data.set_transform(transform)
    one = data[3]
    assert one["mask"].shape == (4, 4)
    assert one["mask"].sum() == 8
    hidden = patch_to_pixel(one["mask"], 8)
    assert torch.equal(one["pixel_values"], originals[3] * ~hidden)
    assert any(not torch.equal(data[3]["mask"], one["mask"]) for _ in range(5))  # each time another draw
    for batch in DataLoader(data, batch_size=4):
        assert batch["mask"].shape == (4, 4, 4)
        expected = originals[batch["number"]] * ~patch_to_pixel(batch["mask"], 8)
        assert torch.equal(batch["pixel_values"], expected)


def test_datasets_with_transform_takes_whole_batches_and_names_samples() -> None:
    """A loader asks for its rows together, so aliens find donors; the original data set stays as it was."""
    data = data_set()
    originals = as_tensors(data["image"])
    corrupt = GroupMask(8, 0.5, "alien", seed=0)

    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        number = torch.tensor(rows["number"])
        images, mask = corrupt(as_tensors(rows["image"]), index=number)
        return {"pixel_values": images, "mask": mask, "number": number}

    view = data.with_transform(transform)
    assert set(data[0]) == {"image", "number"}
    whole = view[:8]
    for batch in DataLoader(view, batch_size=4, num_workers=2):
        assert torch.equal(batch["mask"], whole["mask"][batch["number"]])
        hidden = patch_to_pixel(batch["mask"], 8).expand(-1, 3, -1, -1)
        same = batch["pixel_values"] == originals[batch["number"]]
        assert same[~hidden].all()
        others = originals[batch["number"]]
        taken = (batch["pixel_values"][:, None] == others[None]) | ~hidden[:, None]
        donors = taken.flatten(2).all(-1)
        assert (donors.sum(1) == 1).all()  # one image of this batch
        assert not donors.diagonal().any()  # and never the image itself
    with pytest.raises(ValueError, match="batch of one"):
        view[0]


class Collator:
    """Draw a mask for each image of a batch, for models of Hugging Face that have a mask token of their own."""

    def __init__(self, corrupt: GroupMask) -> None:
        self.corrupt = corrupt

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "bool_masked_pos": self.corrupt.sample(pixel_values).mask.flatten(1)}


def trainer(model: Any, collate: Any, folder: Path, **settings: Any) -> Any:
    pytest.importorskip("accelerate")

    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return {"pixel_values": as_tensors(rows["image"]).float() / 255}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        remove_unused_columns=False,  # or the Trainer takes away the column that the transform reads
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=data_set(16).with_transform(transform), data_collator=collate
    )


def test_trainer_trains_two_steps(tmp_path: Path) -> None:
    model = vit()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    run = trainer(model, Collator(GroupMask(4, (0.4, 0.7), seed=0)), tmp_path, max_steps=2, logging_steps=1)
    run.train()
    assert run.state.global_step == 2
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 2 for loss in losses)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert any("mask_token" in name for name in changed)
    assert any("decoder" in name for name in changed)


def test_workers_of_a_trainer_do_not_repeat_masks(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    model = vit()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["bool_masked_pos"].clone()), with_kwargs=True
    )
    run = trainer(
        model,
        Collator(GroupMask(4, 0.5, seed=0)),
        tmp_path,
        max_steps=8,  # two epochs of 16 images
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,  # or each epoch starts the workers' counters again
    )
    run.train()
    masks = torch.cat(seen)
    assert masks.shape == (32, 64)
    assert len(masks.unique(dim=0)) == 32
