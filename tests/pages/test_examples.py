"""examples/: the code that the pages explain, scripts that a shell reads, notebooks without results."""

import json
import re
import subprocess

import pytest
import yaml

from eva_fast.cli.main import read
from tests.pages.blocks import ROOT, commands, ours, python_of

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs a checkout")


@pytest.mark.parametrize("name", ["objective", "source"])
def test_an_example_is_what_its_page_explains(name):
    assert python_of(f"extend/{name}.md", 0) in (EXAMPLES / f"own_{name}.py").read_text()


def test_slurm():
    text = (EXAMPLES / "slurm.sh").read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (said,) = filter(None, map(ours, commands(text)))
    assert read(said).arguments()["config"].run.resume == "auto"


def test_kubernetes():
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = container["args"]
    nodes, processes = (
        int(re.fullmatch(rf"--{name}=(\d+)", word)[1])
        for name, word in zip(("nnodes", "nproc-per-node"), words)
    )
    assert nodes == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert processes == container["resources"]["limits"]["nvidia.com/gpu"]
    config = read(words[words.index("eva_fast") + 1 :]).arguments()["config"]
    assert config.run.resume == "auto" and config.optim.batch_size % (nodes * processes) == 0
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", EXAMPLES.glob("*.ipynb"), ids=lambda path: path.name)
def test_a_notebook_holds_no_results(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert notebook["nbformat"] == 4 and all(cell["id"] for cell in notebook["cells"])
