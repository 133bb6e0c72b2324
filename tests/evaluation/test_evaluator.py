"""`evaluate`: from a run's folder or a weight file to accuracies, JSON and table."""

import json
import multiprocessing
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from eva_fast.data import ImageField, LabelField, build_loader
from eva_fast.errors import UsageError
from eva_fast.evaluation import evaluate, knn_accuracy
from eva_fast.evaluation.splits import known_labels, open_labelled, split
from eva_fast.evaluation.students import load_student, random_student
from eva_fast.model import create_model
from eva_fast.weights import write_student

SIZES = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, mlp_hidden=96, predict_dim=10
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes that differ in colour alone, with noise."""
    root, g = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for c, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for i in range(24):
            pixels = g.integers(0, 90, (36, 40, 3))
            pixels[..., 2 - c] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    write_student(create_model(**SIZES), tmp_path / "model.safetensors")
    return tmp_path


class Colour(nn.Module):
    """A teacher that sees colours: mean RGB of each patch."""

    name = "colour"

    def forward(self, images):
        return nn.functional.avg_pool2d(images.float(), 8).flatten(2).transpose(1, 2)


def test_figures_json_and_table(run, pictures):
    result = evaluate(run, pictures, teacher=Colour())
    names = [row.features for row in result.rows]
    assert names == ["student", "random init", "8x8 pixels", "teacher colour"]
    by_name = dict(zip(names, result.rows))
    assert by_name["teacher colour"].accuracy["knn"] == 100
    assert by_name["8x8 pixels"].accuracy["linear"] > 90
    assert result.student.dim == 48 and by_name["8x8 pixels"].dim == 192
    assert (result.train, result.val) == (54, 18)
    assert result.majority == pytest.approx(100 / 3)
    p = result.student.accuracy["knn"] / 100
    assert result.student.error["knn"] == pytest.approx(100 * (p * (1 - p) / 18) ** 0.5)
    if p < by_name["random init"].accuracy["knn"] / 100:
        assert any("below its own random" in sentence for sentence in result.verdicts)

    written = json.loads((run / "eval.json").read_text())
    assert written == result.to_dict() and "binomial" in written["error"]
    assert written["results"][0]["knn"] == result.student.accuracy["knn"]
    assert "linear_error" in written["results"][-1]
    text = str(result)
    assert "k-NN %" in text and "linear %" in text and "teacher colour" in text


def test_the_students_feature_is_the_mean_patch_token(run, pictures):
    """Probing recomputed by hand from the model's own tokens."""
    model = load_student(run / "model.safetensors", CPU)
    sources = open_labelled(pictures)
    fields = [ImageField.centred(32), LabelField(sources[0].classes())]
    with build_loader(sources[0], fields, batch_size=72, order="once") as loader:
        batch = next(loader)
    with torch.no_grad():
        features = model.forward_features(batch.images)[:, 1:].mean(1)
    parts = []
    for part in split(known_labels(sources), pictures):
        assert batch.label[part.numbers].tolist() == list(part.labels)
        parts += [features[part.numbers], batch.label[part.numbers]]
    result = evaluate(run, pictures, probe=("knn",), teacher="none", out=run / "x" / "y.json")
    assert result.student.accuracy["knn"] == pytest.approx(knn_accuracy(*parts))
    assert "linear" not in result.student.accuracy and len(result.rows) == 3
    assert (run / "x" / "y.json").is_file() and not (run / "eval.json").exists()


def test_a_teachers_file_is_named_without_its_folders(run, pictures):
    teacher = Colour()
    teacher.name = f"torchvision/net:{run / 'model.safetensors'}"
    result = evaluate(run, pictures, probe="knn", teacher=teacher)
    assert result.rows[-1].features == "teacher torchvision/net:model.safetensors"


class Counted:
    """Labelled pictures that count how often each is built; only the items know their labels."""

    def __init__(self):
        self.built = multiprocessing.Array("i", 48)

    def __len__(self):
        return 48

    def __getitem__(self, number):
        self.built[number] += 1
        pixels = np.random.default_rng(number).integers(0, 90, (3, 36, 40)).astype(np.uint8)
        pixels[number % 3] += 120
        return {"image": pixels, "label": f"channel {number % 3}" if number != 5 else None}


def test_any_source_whose_items_have_labels_is_read_once(run, caplog):
    data = Counted()
    result = evaluate(run, data, teacher=Colour())
    assert result.classes == ("channel 0", "channel 1", "channel 2")
    assert result.train + result.val == 47 and "1 of 48 images have no class" in caplog.text
    assert result.rows[-1].accuracy["knn"] == 100
    assert list(data.built) == [2] + [1] * 47  # the first is looked at when the source is opened
    with pytest.raises(ValueError, match="have no classes"):
        evaluate(run, torch.utils.data.StackDataset([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4))


def test_two_evaluations_are_equal(run, pictures):
    torch.manual_seed(1)
    first = evaluate(run, pictures, teacher="none")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = evaluate(run / "model.safetensors", pictures, teacher="none")
    assert first.rows == second.rows
    assert torch.equal(torch.get_rng_state(), state)


def test_the_runs_own_teacher_is_compared(run, pictures):
    (run / "config.yaml").write_text("model: eva_ti_patch8_32\nteacher: hog\nnum_heads: 4\n")
    result = evaluate(run, pictures, probe="knn")
    assert result.rows[-1].features.startswith("teacher hog")


def test_a_teacher_that_is_gone_is_left_out_unless_asked_for(run, pictures, caplog):
    (run / "config.yaml").write_text("teacher: /gone/ViT-L-14.pt\n")
    result = evaluate(run, pictures, probe="knn")
    assert len(result.rows) == 3 and "/gone/ViT-L-14.pt" in caplog.text
    with pytest.raises((ValueError, FileNotFoundError), match="gone"):
        evaluate(run, pictures, probe="knn", teacher="/gone/ViT-L-14.pt")


def test_a_fault_of_the_program_is_not_taken_for_a_teacher_that_is_gone(run, pictures, monkeypatch):
    def broken(*_args, **_options):
        raise ValueError("planted")

    (run / "config.yaml").write_text("teacher: hog\n")
    monkeypatch.setattr("eva_fast.evaluation.evaluator.load_teacher", broken)
    with pytest.raises(ValueError, match="planted"):
        evaluate(run, pictures, probe="knn")


def test_heads_come_from_metadata_then_the_run_then_the_usual_width(tmp_path):
    sizes = {**SIZES, "embed_dim": 128, "num_heads": 8}
    model = create_model(**sizes)
    write_student(model, tmp_path / "a.safetensors")
    assert load_student(tmp_path / "a.safetensors", CPU).sizes == model.sizes
    save_file(model.state_dict(), tmp_path / "b.safetensors")
    assert load_student(tmp_path / "b.safetensors", CPU).sizes.num_heads == 2
    (tmp_path / "config.yaml").write_text("model: eva_ti_patch8_32\nembed_dim: 128\nnum_heads: 8\n")
    assert load_student(tmp_path / "b.safetensors", CPU).sizes.num_heads == 8


def test_weights_without_a_head_are_enough(tmp_path):
    model = create_model(**{**SIZES, "embed_dim": 64}).eval()
    headless = {k: v for k, v in model.state_dict().items() if k != "mask_token"}
    headless = {k: v for k, v in headless.items() if not k.startswith("lm_head")}
    save_file(headless, tmp_path / "m.safetensors", {"num_heads": "4"})
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        got = load_student(tmp_path / "m.safetensors", CPU).forward_features(images)
        torch.testing.assert_close(got, model.forward_features(images))


def test_random_init_is_the_same_each_time():
    sizes = create_model(**SIZES).sizes
    first, second = random_student(sizes, CPU), random_student(sizes, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_wrong_use_is_refused_before_any_work(run, pictures, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown probe 'tsne'; possible are knn, linear"):
        evaluate(run, pictures, probe=("knn", "tsne"))
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda"):
        evaluate(run, pictures, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no NVIDIA GPU"):
            evaluate(run, pictures, device="cuda")
    with pytest.raises(ValueError, match="no probe"):
        evaluate(run, pictures, probe=())
    with pytest.raises(FileNotFoundError, match="no run folder or weight file"):
        evaluate(tmp_path / "nothing", pictures)
    with pytest.raises(UsageError, match="named by its path, got None"):
        evaluate(None, pictures)
    with pytest.raises(UsageError, match="is a folder, and the result is a file"):
        evaluate(run, pictures, out=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors.*export RUN"):
        evaluate(tmp_path / "empty", pictures)
    with pytest.raises(ValueError, match="have no classes"):
        evaluate(run, pictures / "red")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"eva-fast\[eval\]"):
        evaluate(run, pictures)


def test_weights_of_a_network_with_more_in_it(run):
    """A sentence for the person, not a traceback: a gate, which the student has not."""
    from eva_fast.errors import UsageError
    from eva_fast.weights import read

    state = dict(read(run)) | {"blocks.0.attn.gate": torch.ones(48)}
    save_file(state, run / "other.safetensors")
    (run / "config.yaml").write_text("model: eva_ti_patch8_32\nembed_dim: 48\nnum_heads: 4\n")
    with pytest.raises(UsageError, match=r"other\.safetensors: .*unknown: blocks\.0\.attn\.gate"):
        load_student(run / "other.safetensors", CPU)


def test_files_in_one_folder_have_a_result_each(run, pictures, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes((run / "model.safetensors").read_bytes())
        evaluate(tmp_path / name, pictures, probe=("knn",), teacher="none")
    found = {p.name for p in tmp_path.glob("*.json")}
    assert found == {"a.safetensors.eval.json", "b.safetensors.eval.json"}
