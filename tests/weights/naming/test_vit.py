"""The names of vision transformers that teach."""

import pytest
from safetensors.torch import load_file

from eva_fast.model import create_model
from eva_fast.weights import naming
from tests.teachers.vits import PREFIX, dinov2, hf
from tests.weights.networks import random_, same

HEADS = ("head.", "vision_model.head.", "classifier.", "logit", "text_model.")
UNREAD = ("mask_token", "pooler")


@pytest.mark.parametrize("kind", PREFIX)
def test_the_tables_go_both_ways(tmp_path, kind):
    """What is written again is what the file held, but for heads and what only pre-training needs."""
    hf(kind).save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    names, prefix = naming.find(file, naming.VIT)
    back = names.under(prefix, names.library).write(names.read(file, prefix))
    same(
        back,
        {
            k: v
            for k, v in file.items()
            if not k.startswith(HEADS) and not any(u in k for u in UNREAD)
        },
    )


def test_both_tables_of_dinov2_and_of_students(tmp_path):
    _, state = dinov2(registers=True)
    names = naming.vit.DINOV2
    assert naming.find(state, naming.VIT) == (names, "")
    same(names.write(names.read(state, "")), {k: v for k, v in state.items() if k != "mask_token"})
    student = random_(create_model("eva_ti_patch16_32", depth=1, predict_dim=7)).state_dict()
    names = naming.vit.EVA
    assert naming.find(student, naming.VIT) == (names, "")
    back = names.write(names.read(student, ""))
    same(back, {k: v for k, v in student.items() if k != "mask_token" and "lm_head" not in k})
