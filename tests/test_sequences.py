"""The guarantees after any sequence of what people do with a transform: calls, copies, casts, checkpoints, plans."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from torch.utils.data import default_collate

from gmml_aug import Alien, GroupMask, Masked, MaskPlan, mix_labels, patch_to_pixel

from .backends import SETTINGS
from .test_guarantees import images_of, run_by

PATCH, GRID = 4, (4, 6)
FILLS: list[Any] = ["noise", "alien", {"alien": 1, "zeros": 1}, {"noise": 1, "shuffle": 1, Alien("group"): 2}]
RATIOS = st.sampled_from([0.0, 0.3, 0.5, 0.9, (0.2, 0.7)])
BATCHES = st.integers(2, 5)
CASTS: list[Any] = [
    lambda module: module.half(),
    lambda module: module.double(),
    lambda module: module.type(torch.bfloat16),
    lambda module: module.to("cpu", torch.float16),
    lambda module: module.eval().train(),
]
COPIES: list[Any] = [deepcopy, lambda module: pickle.loads(pickle.dumps(module)), lambda module: saved(module)]


def saved(module: GroupMask) -> GroupMask:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: GroupMask = torch.load(file, weights_only=False)
    return loaded


class Life(RuleBasedStateMachine):
    """One transform, and beside it what a new one of the same arguments would draw."""

    plan: MaskPlan | None = None

    @initialize(fill=st.sampled_from(FILLS), seed=st.sampled_from([None, 0, -7]), inplace=st.booleans(), ratio=RATIOS)
    def build(self, fill: Any, seed: int | None, inplace: bool, ratio: Any) -> None:
        self.arguments: dict[str, Any] = {"patch_size": PATCH, "fill": fill, "seed": seed, "inplace": inplace}
        self.seed, self.ratio, self.count = seed, ratio, 0
        self.module = GroupMask(ratio=ratio, **self.arguments)
        self.fast: Any = None

    def expected(self, images: Tensor, index: Tensor | None) -> Masked:
        """Return what a new transform at the same place of its stream makes of them."""
        new = GroupMask(ratio=self.ratio, **self.arguments)
        new.counter.fill_(self.count)
        masked: Masked = new(images.clone(), index=index)
        return masked

    def hides_its_share(self, mask: Tensor) -> bool:
        patches, counts = GRID[0] * GRID[1], mask.flatten(1).sum(1)
        low, high = self.ratio if isinstance(self.ratio, tuple) else (self.ratio, self.ratio)
        return bool(((counts >= round(low * patches)) & (counts <= round(high * patches))).all())

    def call(self, module: Any, batch: int, named: bool) -> None:
        images = images_of((batch, 3, GRID[0] * PATCH, GRID[1] * PATCH), seed=batch)
        index = torch.arange(batch) * 3 + 1 if named and self.seed is not None else None
        torch.manual_seed(self.count)
        expected = self.expected(images, index)
        torch.manual_seed(self.count)
        got = module(images.clone(), index=index)
        assert torch.equal(got.mask, expected.mask)
        assert torch.equal(got.images, expected.images)
        assert self.hides_its_share(got.mask)
        hidden = patch_to_pixel(got.mask, PATCH)
        assert torch.equal(torch.where(hidden, 0, got.images), torch.where(hidden, 0, images))
        self.count += 0 if index is not None else batch

    @rule(batch=BATCHES, named=st.booleans())
    def called(self, batch: int, named: bool) -> None:
        self.call(self.module, batch, named)

    @rule(batch=BATCHES, named=st.booleans())
    def called_compiled(self, batch: int, named: bool) -> None:
        if self.fast is None:
            torch.compiler.reset()  # eight transforms of other arguments are the compiler's limit
            self.fast = torch.compile(self.module, fullgraph=True, backend="eager")
        self.call(self.fast, batch, named)

    @rule(batch=BATCHES)
    def called_in_inference_mode(self, batch: int) -> None:
        with torch.inference_mode():
            self.call(self.module, batch, False)

    @rule(ratio=RATIOS)
    def scheduled(self, ratio: Any) -> None:
        self.module.ratio = self.ratio = ratio

    @rule(cast=st.sampled_from(CASTS))
    def cast(self, cast: Any) -> None:
        cast(self.module)

    @rule(copy=st.sampled_from(COPIES))
    def copied(self, copy: Any) -> None:
        self.module, self.fast = copy(self.module), None

    @rule(dtype=st.sampled_from([torch.int64, torch.float64]), assign=st.booleans())
    def loaded(self, dtype: torch.dtype, assign: bool) -> None:
        state = {name: value.to(dtype) for name, value in self.module.state_dict().items()}
        if self.seed is None:
            self.count = 0  # nothing depends on it, and it is in no checkpoint
        self.module, self.fast = GroupMask(ratio=self.ratio, **self.arguments), None
        self.module.load_state_dict(state, assign=assign)

    @rule(batch=BATCHES, one_by_one=st.booleans(), in_inference_mode=st.booleans())
    def sampled(self, batch: int, one_by_one: bool, in_inference_mode: bool) -> None:
        shape = (3, GRID[0] * PATCH, GRID[1] * PATCH)
        with torch.inference_mode(in_inference_mode):
            if one_by_one:
                self.plan = default_collate([self.module.sample(shape) for _ in range(batch)])
            else:
                self.plan = self.module.sample((batch, *shape))
        self.count += batch
        self.drawn = self.plan.mask.clone()

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data())
    def taken_from_a_plan(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.integers(0, len(self.drawn) - 1), min_size=2, max_size=6))
        assert self.plan is not None
        self.plan, self.drawn = MaskPlan(*(field[chosen] for field in self.plan)), self.drawn[chosen]

    @precondition(lambda self: self.plan is not None)
    @rule(gradient=st.booleans(), copy=st.sampled_from([None, *COPIES]))
    def applied(self, gradient: bool, copy: Any) -> None:
        module, plan = self.module if copy is None else copy(self.module), self.plan
        assert plan is not None
        batch = len(self.drawn)
        images = images_of((batch, 3, GRID[0] * PATCH, GRID[1] * PATCH), seed=9)
        first = module.apply(images.clone().requires_grad_(gradient).mul(1), plan)
        assert torch.equal(first.images, module.apply(images.clone(), plan).images)
        assert torch.equal(first.mask, self.drawn)
        owner = module.owner(plan)
        alien = torch.tensor([isinstance(fill, Alien) for fill in module.fills])[plan.fill][:, None, None] & plan.mask
        place = torch.arange(batch)[:, None, None]
        assert torch.equal(owner != place, alien)  # never the image itself
        assert torch.allclose(mix_labels(torch.arange(batch), owner, batch).sum(1), torch.ones(batch))
        image = owner.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, None].expand(images.shape)
        shown = patch_to_pixel(alien | ~plan.mask, PATCH)
        assert torch.equal(torch.where(shown, first.images, 0), torch.where(shown, images.gather(0, image), 0))
        if gradient:
            first.images.sum().backward()

    @invariant()
    def its_counter_counts(self) -> None:
        if hasattr(self, "module"):
            assert self.module.counter.dtype == torch.int64
            assert self.module.counter == self.count


@pytest.mark.slow
@pytest.mark.parametrize("names", SETTINGS)
def test_whatever_was_done_before(names: str) -> None:
    with run_by(names):
        run_state_machine_as_test(Life, settings=settings(max_examples=25, stateful_step_count=20, deadline=None))
