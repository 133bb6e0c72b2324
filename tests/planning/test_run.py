"""What a plan counts of a run, on meta tensors, against the real step of its objective."""

import pytest
import torch

from eva_fast import native
from eva_fast.config import Config
from eva_fast.device import seed
from eva_fast.errors import UsageError
from eva_fast.objectives import open_objective
from eva_fast.objectives.request import open_teacher
from eva_fast.planning.counter import Recorder, count_step
from eva_fast.planning.planner import plan
from eva_fast.planning.run import PlannedRun
from eva_fast.train.resolve import setting_of

TINY = dict(
    model="eva_ti_patch16_64", embed_dim=48, depth=4, num_heads=3, mlp_hidden=80, teacher="builtin",
    whiten=False, drop_path=0.0, device="cpu", kernels="native",
)  # fmt: skip
BATCH = 3


def planned(**options) -> PlannedRun:
    return PlannedRun.of(Config.from_options({**TINY, **options}), torch.float32, "cpu")


def real_flops(**options) -> int:
    """Of a forward and backward on real tensors."""
    setting = setting_of(Config.from_options({**TINY, **options}))
    objective = open_objective(setting.config.objective.objective)
    seed(0, setting.device)
    teacher = open_teacher(setting.config.teacher.teacher, objective.request(setting), setting)
    module = objective.build(setting, teacher)
    batch, target = objective.example(setting, teacher, BATCH)
    target = objective.target(module, batch) if target is None else target
    with Recorder() as recorder:
        objective.loss(module, batch, target)[0].backward()
    return sum(op.flops for op in recorder.operators)


@pytest.mark.skipif(not native.available(), reason="the native library is not built")
@pytest.mark.parametrize("objective", ["eva", "mae", "pixels", "vqkd"])
def test_the_count_is_that_of_the_real_step(objective):
    run = planned(objective=objective)
    count = run.count(BATCH)
    assert count.flops == real_flops(objective=objective) > 0
    with torch.device("meta"):
        module = run.build()
    assert count.parameters == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert 0 < run.block_bytes(BATCH) < count.saved_bytes
    assert run.count(BATCH, recompute=1.0).saved_bytes < count.saved_bytes


def test_evas_step_is_that_of_the_formulations():
    run = planned()
    options = dict(dtype=torch.float32, device="cpu", masked=run.masked)
    assert run.count(5) == count_step("eva_fast", run.sizes, 5, **options)


def test_other_formulations_are_of_their_objective_alone():
    class Other(type(open_objective("eva"))):
        name, baselines = "other", ()

    with pytest.raises(UsageError, match="'tuned' is none of the objective 'other': .* eva_fast"):
        plan(formulation="tuned", objective=Other, images=100)


@pytest.mark.parametrize(
    ("recipe", "student", "teacher", "parameters"),
    [
        # of features 1024 wide; this teacher's are 768 wide
        ("eva-l14", 46.6, 160.9, 316_576_768 - 256 * (512 + 1)),
        ("fd-b16", 35.36, 35.13, 85_665_360 + 590_592),
        ("mae-b16", 19.1, 0.0, 111_655_680),
        ("vqkd-b16", 44.6, 35.3, 108_829_216),
    ],
)
def test_published_networks_have_the_published_cost(recipe, student, teacher, parameters):
    """Forward GFLOP an image at 224 pixels, and parameters that train."""
    options = {"recipe": recipe, **({"teacher": "openai/ViT-L-14"} if recipe == "eva-l14" else {})}
    run = PlannedRun.of(Config.from_options(options), torch.bfloat16, "cuda")
    count = run.count(2)
    assert count.total("flops", phase="forward") / 2e9 == pytest.approx(student, abs=0.06)
    asked = sum(op.flops for op in run.teacher_operators(2)) / 2e9
    assert asked == pytest.approx(teacher, abs=0.06)
    assert count.parameters == parameters


class Codes(torch.nn.Module):
    """A tokenizer without a network."""

    dim, point, grid = 8192, "code", (14, 14)

    def forward(self, images, mask=None):
        return torch.zeros(mask.numel(), dtype=torch.int64, device=images.device)


def test_tokens_cost_no_more_than_published():
    """42.8 GFLOP an image forward with whole last blocks; ours are trimmed. The cross-entropy's
    gradients, two products more, come with its forward."""
    options = Config.from_options({"recipe": "beit2-b16", "teacher": Codes()})
    count = PlannedRun.of(options, torch.bfloat16, "cuda").count(2)
    heads = 2 * 2 * 75 * 768 * 8192
    found = [op.flops for op in count.operators if "cross_entropy" in op.name and op.flops]
    assert sum(found) == 2 * 3 * heads
    forward = count.total("flops", phase="forward") / 2 - 2 * heads
    assert 39e9 < forward < 42.8e9 and count.flops / 2 < 3 * 42.8e9
    assert count.parameters == 106_143_056


@pytest.mark.parametrize("teacher", [None, "runs/not-trained-yet"])
def test_tokens_are_planned_before_there_is_a_tokenizer(teacher):
    """With the published one's encoder: 35.5 GFLOP an image."""
    named = {} if teacher is None else {"teacher": teacher}
    run = PlannedRun.of(
        Config.from_options({"recipe": "beit2-b16", **named}), torch.bfloat16, "cuda"
    )
    assert run.teacher.name == "VQ-KD 768 wide, 12 blocks, 8192 codes"
    asked = sum(op.flops for op in run.teacher_operators(2)) / 2e9
    assert asked == pytest.approx(35.5, abs=0.06)
    assert run.count(2).parameters == 106_143_056


def test_a_teacher_without_codes_is_refused_for_tokens():
    for teacher in ("openai/ViT-B-16", "hog"):
        options = Config.from_options({"recipe": "beit2-b16", "teacher": teacher})
        with pytest.raises(UsageError, match="gives no codes: name a run"):
            PlannedRun.of(options, torch.bfloat16, "cuda")
