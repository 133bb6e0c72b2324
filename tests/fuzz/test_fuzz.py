"""Anything at every door: it is taken, or refused by one error; nothing runs, nothing is made."""

import io
import json
import shutil
import tarfile
import zipfile
import zlib

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from eva_fast.config import Config
from eva_fast.data import open_source
from eva_fast.data.sources import streams
from eva_fast.data.sources.streams import StreamSource, read_shard
from eva_fast.evaluation.students import load_student
from eva_fast.model import create_model
from eva_fast.ops import kept
from eva_fast.recipes.ablation.plan import planned
from eva_fast.teachers import load_teacher
from eva_fast.teachers.clip import ClipConfig, ClipTower
from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import save
from eva_fast.weights import read, write_student
from tests.fuzz.doors import EXAMPLES, PLAIN, TEXTS, changed, damaged, payloads, text_of, tried

pytestmark = EXAMPLES
CPU = torch.device("cpu")


@pytest.fixture
def victim(tmp_path):
    return tmp_path / "made"


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    """Caches and relative names lie in the test's folder, which in the end holds what it should."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streams, "PAUSE_SECONDS", 0.0)


def test_configurations(tmp_path, victim, examples):
    path = tmp_path / "c.yaml"
    names = st.sampled_from(list(Config().options()))
    said = st.dictionaries(st.one_of(names, names, TEXTS), PLAIN, max_size=4).map(text_of)
    tags = [
        "!!python/object/apply:os.mkdir [made]",
        "!!python/name:os.system",
        "!!int ''",
        "&a [*a]",
    ]
    tags += ["!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a]", "*x", "<<: [1]", "!!bool x"]
    tagged = st.tuples(names, st.sampled_from(tags)).map(lambda t: f"{t[0]}: {t[1]}".encode())
    lines = st.one_of(
        said, tagged, st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace"))
    )

    def attempt(content):
        path.write_bytes(content)
        assert isinstance(Config.from_yaml(path).options(), dict)

    tried(st.one_of(lines, st.binary(max_size=40)), examples, attempt, victim)


def test_checkpoints(tmp_path, victim, examples):
    """Each file of one replaced, with the checksum that a stranger would give it."""
    tensors = {"model": {"w": torch.ones(5, 3), "lr": 0.5}}
    sound = save(tmp_path / "sound", 1, tensors, {"step": 1, "options": {"lr": 1.0}}, 2)
    contents = {p.name: p.read_bytes() for p in sound.iterdir()}
    names = st.sampled_from(sorted(contents))
    hostile = st.sampled_from(payloads(victim))
    one = names.flatmap(
        lambda n: st.tuples(
            st.just(n), st.one_of(damaged(contents[n]), hostile, PLAIN.map(text_of))
        )
    )
    manifests = changed(json.loads(contents["manifest.json"])).map(
        lambda v: ("manifest.json", text_of(v))
    )

    def attempt(drawn):
        (name, content), honest = drawn
        folder = tmp_path / "step_000000001"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        (folder / name).write_bytes(content)
        if name != "manifest.json" and not honest:
            manifest = json.loads(contents["manifest.json"])
            manifest["files"][name] = [len(content), zlib.crc32(content)]
            (folder / "manifest.json").write_text(json.dumps(manifest))
        fault = checkpoint.fault_of(folder)
        kept = name == "manifest.json" or not honest or content == contents[name]
        assert isinstance(fault, str) or kept
        for look in (checkpoint.names_in, checkpoint.options_in, checkpoint.run_state, load):
            try:
                look(folder)
            except ValueError as error:
                assert str(folder) in str(error)

    def load(folder):
        checkpoint.load(folder, {"model": {"w": torch.zeros(5, 3), "lr": 0.0}})

    tried(st.tuples(st.one_of(one, manifests), st.booleans()), examples, attempt, victim)


def members(victim):
    """Strategy: a member of a tar file, its header as it pleases."""
    kinds = [tarfile.REGTYPE] * 4 + [
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
        tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE, b"?",
    ]  # fmt: skip
    names = ["a.jpg", "../b.jpg", "/c.jpg", f"{victim}/d.jpg", "x/e.jpg", "f.txt", ".g.jpg", ""]
    sizes = st.sampled_from([None, None, None, 0, -1, -512, 1 << 20, 1 << 33, 1 << 62, 1 << 70])
    words = st.sampled_from([
        b"", b"image", b"20 size=-1024000000\n", b"28 GNU.sparse.major=1000000\n", b"99999 a=b\n",
        b"0 =\n", b"22 path=../../out.jpg\n", b"26 GNU.sparse.map=1,2,3,4,\n", b"\xff" * 600,
    ])  # fmt: skip

    def build(drawn):
        kind, name, size, data = drawn
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        info.size = len(data) if size is None else size
        return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)

    return st.tuples(st.sampled_from(kinds), st.sampled_from(names), sizes, words).map(build)


def test_shards(tmp_path, victim, examples, little_memory):
    end = st.sampled_from([b"\0" * 1024, b"", b"\0" * 100, b"junk" * 200])
    whole = st.tuples(st.lists(members(victim), min_size=1, max_size=5), end).map(
        lambda t: b"".join(t[0]) + t[1]
    )
    hurt = whole.flatmap(lambda raw: st.one_of(st.just(raw), damaged(raw or b"x")))
    form = st.sampled_from(["s.tar", "s.tar.gz", "s.tar.bz2", "file"])

    def attempt(drawn):
        raw, name, zipped = drawn
        packed = zlib.compressobj(wbits=31) if zipped else None
        raw = packed.compress(raw) + packed.flush() if packed else raw
        path = tmp_path / ("s.tar" if name == "file" else name)
        path.write_bytes(raw)
        source = open_source(f"file://{path}" if name == "file" else path)
        if isinstance(source, StreamSource):
            found = [data for shard in source.shards for *_, data in read_shard(shard)]
        else:
            found = [source.item(i).image for i in range(len(source))]
        assert all(isinstance(data, bytes) for data in found)

    tried(st.tuples(hurt, form, st.booleans()), examples, attempt, victim)
    assert {p.name for p in tmp_path.iterdir()} <= {"cache", "s.tar", "s.tar.gz", "s.tar.bz2"}


def test_lists(tmp_path, victim, examples):
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "pipe:x").write_bytes(b"")
    lines = st.lists(st.one_of(TEXTS, st.sampled_from(["a.jpg", f"pipe:mkdir {victim}", "#", "~"])))
    content = lines.map(lambda found: "\n".join(found).encode("utf-8", "surrogatepass"))

    def attempt(raw):
        (tmp_path / "l.txt").write_bytes(raw)
        open_source(tmp_path / "l.txt")

    tried(st.one_of(content, st.binary(max_size=30)), examples, attempt, victim)


def archives(victim):
    """Sound weight files of every kind, and the same with pickles that run code."""
    state = {"w": torch.ones(2, 3), "b": torch.arange(4)}
    found = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        found.append(buffer.getvalue())
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), script)
    found.append(script.getvalue())
    for sound in (found[0], found[2]):
        for payload in payloads(victim):
            buffer = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(sound)) as old, zipfile.ZipFile(buffer, "w") as new:
                for name in old.namelist():
                    new.writestr(name, payload if name.endswith("data.pkl") else old.read(name))
            found.append(buffer.getvalue())
    return found + payloads(victim)


def test_weights(tmp_path, victim, examples, little_memory):
    path = tmp_path / "w.pt"
    any_of_them = st.sampled_from(archives(victim)).flatmap(
        lambda sound: st.one_of(st.just(sound), damaged(sound))
    )

    def attempt(raw):
        path.write_bytes(raw)
        weights = read(path)
        assert sum(weights[name].nbytes for name in weights) <= 2 * len(raw)

    tried(any_of_them, examples, attempt, victim)


def test_safetensors_headers(tmp_path, victim, examples, little_memory):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(2, 3), "b": torch.arange(4)}, path, {"sizes": "{}"})
    sound = path.read_bytes()
    size = int.from_bytes(sound[:8], "little")
    header, data = json.loads(sound[8 : 8 + size]), sound[8 + size :]

    def attempt(drawn):
        value, length = drawn
        text = text_of(value)
        size = len(text) if length is None else length
        path.write_bytes((size % (1 << 64)).to_bytes(8, "little") + text + data)
        weights = read(path)
        assert all(weights[name].nbytes <= len(data) for name in weights)

    lengths = st.sampled_from([None, None, None, 0, 7, 1 << 30, 1 << 62, -1])
    tried(st.tuples(changed(header), lengths), examples, attempt, victim)


def test_indices_of_shards(tmp_path, victim, examples):
    save_file({"w": torch.ones(2)}, tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    sound = {"metadata": {"total_size": 8}, "weight_map": {"w": "part.safetensors"}}

    def attempt(value):
        index.write_bytes(text_of(value))
        weights = read(index)
        assert [weights[name].shape for name in weights] == [(2,)] * len(weights)

    tried(st.one_of(changed(sound), PLAIN), examples, attempt, victim)


SIZES = dict(
    img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_hidden=32, predict_dim=4
)


def test_students(tmp_path, victim, examples, little_memory):
    """What a file's metadata, or the config.yaml beside it, says of sizes."""
    path = tmp_path / "model.safetensors"
    write_student(create_model(**SIZES), path)
    tensors = {name: read(path)[name] for name in read(path)}
    options = {"model": "eva_ti_patch16_96", **SIZES}

    def attempt(drawn):
        value, beside, names = drawn
        said = {} if beside else {"sizes": json.dumps(value)}
        save_file({**tensors, **{name: torch.ones(1) for name in names}}, path, said)
        (tmp_path / "config.yaml").write_bytes(text_of(value) if beside else b"")
        load_student(path, CPU)

    names = st.lists(
        st.sampled_from(["blocks.1000000000.x", "blocks.7.attn.qkv.weight"]), max_size=1
    )
    sizes = st.one_of(changed(options), PLAIN)
    tried(st.tuples(sizes, st.booleans(), names), examples, attempt, victim)


def test_kernel_choices(tmp_path, victim, examples):
    sound = {"gemm": {"implementation": "native", "milliseconds": {"native": 1.5}}}

    def attempt(value):
        (tmp_path / "k.json").write_bytes(text_of(value))
        found = kept.read(tmp_path / "k.json")
        assert found is None or all(isinstance(c, kept.Choice) for c in found.values())

    tried(st.one_of(changed(sound), PLAIN), examples, attempt, victim)


def test_plans_of_ablations(tmp_path, victim, examples):
    cost = {"student": 1, "teacher": 1, "step_seconds": 1.0, "start_seconds": 1.0}
    sound = {
        "asked": {"seeds": 1}, "probe_seconds": 1.0, "beside": {}, "settled": {},
        "budget": {"flops": 1.0, "batch": {"eva": 8}, "costs": {"eva": cost}},
    }  # fmt: skip

    def attempt(value):
        (tmp_path / "plan.json").write_bytes(text_of(value))
        planned(tmp_path, {"seeds": 1}, (), None, None)

    tried(st.one_of(changed(sound), PLAIN), examples, attempt, victim)


TEACHERS = {
    "clip": {
        "model_type": "clip", "vision_config": {
            "num_attention_heads": 2, "hidden_act": "gelu", "image_size": 32, "layer_norm_eps": 1e-5,
            "hidden_size": 16, "model_type": "clip_vision_model",
        },
    },
    "timm": {
        "architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2, "img_size": 32},
        "pretrained_cfg": {
            "tag": "openai", "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32],
        },
    },
    "open_clip": {
        "model_cfg": {"vision_cfg": {"width": 16, "head_width": 8, "image_size": 32, "norm_kwargs": {}}},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", TEACHERS)
def test_folders_of_teachers(tmp_path, victim, examples, little_memory, kind):
    """The configurations beside weights."""
    config = ClipConfig(
        width=16, layers=1, heads=2, mlp_hidden=32, patch_size=16, grid=(2, 2), dim=8
    )
    tower = {f"visual.{name}": t for name, t in ClipTower(config, config.grid).state_dict().items()}
    save_file(tower, tmp_path / "model.safetensors")
    name = "open_clip_config.json" if kind == "open_clip" else "config.json"
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

    def attempt(drawn):
        config, processor = drawn
        (tmp_path / name).write_bytes(text_of(config))
        (tmp_path / "preprocessor_config.json").write_bytes(text_of(processor))
        load_teacher(tmp_path)

    both = st.tuples(changed(TEACHERS[kind]), st.one_of(st.just(images), changed(images)))
    tried(both, examples, attempt, victim)
