"""Run blocks of the pages as they are written, in the order of each page, in workspaces with a finished run on digits.

`ELSEWHERE` names the tests that run the blocks of other pages, `NOT_RUN` the blocks that no test runs, with the reason.
"""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from expunge.cli import app
from expunge.commands.variant import changes
from expunge.workspaces.workspace import params_with
from tests.pages.running import lines, run, said_in, serving, typed
from tests.pages.shell import blocks, fences, pages, simple_commands, spans
from tests.pipeline import ROOT
from tests.servers import free_port

# Pages and the tests that run all of their blocks in the languages bash and sh.
ELSEWHERE = {
    "docs/deployment.md": "tests/flows/test_deployment_doc.py",
    "docs/erasure.md": "tests/erasure/test_document.py",
    "docs/plugins.md": "tests/test_example_package.py",
    "docs/start.md": "tests/workspaces/test_start_doc.py",
}
# Page and beginning of a block -> why no test runs it. Its commands are still those that `test_commands.py` checks.
NOT_RUN = {
    ("CONTRIBUTING.md", "make setup"): "sets the environment up and runs all tests; continuous integration does",
    ("README.md", "git clone"): "ten minutes; tests/flows/test_deployment_doc.py makes an environment",
    ("docs/deployment.md", "expunge deploy --name"): "example addresses; tests/flows/test_workspaces.py has real ones",
    ("docs/docker.md", "make up"): "needs Docker; tests/docker runs the services without containers",
    ("docs/docker.md", "# once, in the repository"): "needs Docker; tests/docker/test_loopback.py does it without",
    ("docs/dvc.md", "expunge repro --jobs 2"): "a pipeline; tests/workspaces/test_side_by_side.py runs one",
    ("docs/dvc.md", "expunge repro --jobs 8"): "a cluster; tests/workspaces/test_side_by_side.py starts one",
    ("docs/extraction.md", "expunge variant"): "another network; the test below checks its settings",
    ("docs/extraction.md", "torchrun"): "eight processes are too many here; tests/features/test_engines.py starts two",
    ("docs/first-run.md", "make run"): "ten minutes; the test of the README below has the same stages on digits",
    ("docs/people.md", "make people"): "fetches 136 MB; tests/commands/test_people.py runs it on a sample",
    ("docs/requests.md", "# the papers'"): "minutes each; the test below checks their settings",
    ("docs/review.md", "expunge ui --webhooks"): "two terminals; tests/promotion/test_waking.py has server and watcher",
    ("docs/start.md", "git clone"): "fetches packages; tests/workspaces/test_start_doc.py installs the wheel",
    ("docs/start.md", "cd expunge && git pull"): "needs a newer version; tests/workspaces/test_init.py upgrades",
    ("docs/text.md", "expunge demo-text"): "fetches 87 MB; tests/workspaces/test_text_demo.py runs it on a sample",
    ("docs/verdict.md", "expunge variant"): "minutes; the test below checks its settings",
    ("examples/expunge-seven-segments/README.md", "pip install"): "the commands of docs/plugins.md",
}


def calls() -> set[tuple[str, str]]:
    """Return page and beginning of every block that the tests of this file run."""
    found = [node for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.Call)]
    typing = [node for node in found if isinstance(node.func, ast.Name) and node.func.id == "typed"]
    return {(ast.literal_eval(node.args[0]), ast.literal_eval(node.args[1])) for node in typing}


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in pages()])
def test_every_block_is_run_by_a_test_or_is_named_with_the_reason(page):
    named = NOT_RUN.keys() | calls()
    for block in blocks(ROOT / page):
        places = [one for one in named if one[0] == page and block.text.startswith(one[1])]
        by_another = page in ELSEWHERE and block.language in ("bash", "sh")
        assert len(places) + by_another == 1, f"{block.place}: {places or 'nothing runs it'}"
    if page in ELSEWHERE:
        assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text()


def test_reasons_are_for_blocks_that_exist_and_name_tests_that_exist():
    for (page, begins), reason in NOT_RUN.items():
        (text,) = [block.text for block in blocks(ROOT / page) if block.text.startswith(begins)]
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w/.]*\w", reason)), reason
        if named := re.search(r"the commands of (\S+)", reason):
            assert all(line in (ROOT / named[1]).read_text() for line in lines(text)), reason


def experiments() -> list[tuple[str, list[str]]]:
    """Return the pages' runs with other params that take too long here: page, and what each changes."""
    found = []
    for page in ("docs/requests.md", "docs/verdict.md", "docs/extraction.md"):
        texts = [block.text for block in blocks(ROOT / page)] + [text for _, text in spans(ROOT / page)]
        for words in (words for text in texts for words, _ in simple_commands(text)):
            if words[:3] == ["dvc", "exp", "run"] or words[:2] == ["expunge", "variant"]:
                given = [words[i + 1] for i, word in enumerate(words) if word == "-S"]
                found.append((page, [change for change in given if not change.endswith("...")]))
    return found


@pytest.mark.slow
def test_experiments_that_take_long_have_settings_that_pass_the_check(tmp_path, monkeypatch):
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = experiments()
    assert len(found) > 9
    for page, changed in found:
        Path("params.yaml").write_text(yaml.safe_dump(params_with(ROOT / "params.yaml", changes(changed))))
        checked = CliRunner().invoke(app, ["check"])
        assert checked.exit_code == 0, f"{page}: {changed}\n{checked.output}"


@pytest.fixture(scope="module")
def repository(finished, tmp_path_factory) -> Path:
    """Return a git repository with the finished workspace. The commit before it asks for another class."""
    home = tmp_path_factory.mktemp("pages") / "work"
    shutil.copytree(finished, home, symlinks=True)
    shutil.copy(ROOT / ".gitignore", home / ".gitignore")
    (home / "log.txt").unlink(missing_ok=True)
    params = (home / "params.yaml").read_text()
    run("git init --quiet --initial-branch main && git config user.name a && git config user.email a@b.c", home)
    run("dvc config --unset core.no_scm && printf '/config.local\n/tmp\n/cache\n' > .dvc/.gitignore", home)
    (home / "params.yaml").write_text(yaml.safe_dump(params_with(home / "params.yaml", {"split": {"classes": [3]}})))
    run("git add . && git reset --quiet dvc.lock reports && git commit --quiet --message 'before a run'", home)
    (home / "params.yaml").write_text(params)
    run("git add . && git commit --quiet --message 'a run'", home)
    return home


@pytest.mark.slow
def test_a_run_on_digits_prints_the_line_that_the_readme_shows(finished):
    """The words of the verdict may differ: this run trains for a shorter time than the demo does."""
    (line,) = re.findall(r"^\d+ of [\d,]+ training rows .*$", (ROOT / "README.md").read_text(), re.M)
    words = re.escape(line.removesuffix(" ...").replace("teacher-map", "METHOD")).replace("METHOD", r"[\w-]+")
    words = re.sub(r"(kept|shown|cannot\\ tell)(?=;)", r"(lost|kept|shown|refuted|cannot\\ tell)", words)
    line_of_a_run = words.replace(r"\ ", r"\s")
    assert re.search(line_of_a_run, run("expunge show", finished))


@pytest.mark.slow
def test_the_check_and_the_cuts_of_a_finished_run(repository, tmp_path):
    checked = run(typed("docs/check.md", "expunge check"), repository)
    assert "Data and pipelines are up to date" in checked
    cuts = run(said_in("docs/cuts.md", "expunge cuts"), repository)
    assert "stage1" in cuts and "stage2" in cuts
    assert "relearn" in run(said_in("docs/comparators.md", "expunge methods"), tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_runs_and_experiments_with_dvc(repository, tmp_path):
    shown = run(typed("docs/dvc.md", "dvc metrics show"), repository)
    assert "reports/metrics/loft.json" in shown and "test_retain" in shown
    compared = run(typed("docs/dvc.md", "dvc metrics diff"), repository)
    assert "reports/metrics/loft.json" in compared and "split.classes" in compared
    run(typed("docs/dvc.md", "dvc exp run"), repository)
    table = run(typed("docs/dvc.md", "dvc exp show"), repository)
    assert "[classes-3]" in table and max(map(len, table.splitlines())) <= 120
    for sentence in ("dvc metrics diff HEAD classes-3", "dvc exp diff", "dvc plots diff", "dvc plots show"):
        run(said_in("docs/dvc.md", sentence), repository)
    run(said_in("docs/dvc.md", "dvc exp apply classes-3"), repository)
    # The branch that a deployment pushes has such a name; docs/deployment.md fetches it below.
    name = typed("docs/deployment.md", "git fetch").split()[3]
    run(f"git checkout --quiet -b {name} && git commit --quiet --all --message result", repository)
    remote, clone = tmp_path / "remote", tmp_path / "clone"
    push, pull = typed("docs/dvc.md", "dvc remote add", ADDRESS=str(repository)).split("git clone")
    run(push.replace("s3://bucket/path", str(remote)), repository)  # "or a folder"
    run("git commit --quiet --all --message remote", repository)
    run(f"git clone{pull}", tmp_path)
    assert (clone / "models/unlearned/loft/manifest.json").is_file()
    run(f"git checkout --quiet -b ours origin/{name}~2 && git checkout origin/{name} -- .dvc/config", clone)
    assert yaml.safe_load((clone / "params.yaml").read_text())["split"]["classes"] == [5]
    run(typed("docs/deployment.md", "git fetch"), clone)
    assert json.loads((clone / "data/split/request.json").read_text())["whole_classes"] == [3]
    run(said_in("docs/dvc.md", "git tag -a original@v1.0.0 -m first"), repository)
    run(said_in("docs/dvc.md", "dvc artifacts get REPOSITORY original", REPOSITORY=str(repository)), tmp_path)
    assert (tmp_path / "original/manifest.json").is_file()


@pytest.fixture(scope="module")
def promoted(finished, tmp_path_factory) -> Path:
    """Return a workspace whose first version became the champion by the commands of docs/review.md."""
    home = tmp_path_factory.mktemp("promoted") / "work"
    shutil.copytree(finished, home, symlinks=True)
    review, promote, rollback, audit, ledger = lines(typed("docs/review.md", "expunge review"))
    assert "passes the gates" in run(review, home)
    assert "is the champion. Ledger entry 1." in run(promote, home, answer="y\n")
    assert "is the only champion" in run(rollback, home, status=2)
    assert "as the ledger says" in run(audit, home)
    assert "..." in run(ledger, home)
    return home


@pytest.mark.long
@pytest.mark.slow
def test_a_promoted_version_is_served_scored_exported_and_watched(promoted):
    version = promoted / "version"
    models = "models:/expunge-digits-resnet-small@champion"
    run(f"mlflow artifacts download --artifact-uri {models} --dst-path version", promoted)
    shutil.copy(next(version.rglob("serving_input_example.json")), promoted / "request.json")
    port = free_port()
    predict, serve, curl = lines(typed("docs/serving.md", "mlflow models predict"))
    assert models in predict and "5001" in serve and "5001" in curl
    assert '"predictions"' in run(predict, promoted)
    with serving(serve.replace("5001", str(port)), promoted, port):
        answer = run(curl.replace("5001", str(port)), promoted)
        named = run_python("import urllib", promoted, **{"5001": str(port)})
    assert '"predictions"' in answer
    predicted = [line.split()[0] for line in named.splitlines()]
    assert len(predicted) == len(json.loads(answer)["predictions"]) and set(predicted) <= set("0123456789")
    assert ast.literal_eval(run_python("import mlflow", promoted).splitlines()[-1]) == predicted
    write_rows(promoted / "rows.parquet", promoted / "request.json")
    assert "scored with" in run(typed("docs/serving.md", "expunge predict"), promoted)
    assert pq.read_table(promoted / "answers.parquet").num_rows > 0
    run(said_in("docs/serving.md", "expunge export model.pt2"), promoted)
    run(said_in("docs/serving.md", "expunge export --format onnx model.onnx"), promoted)
    for library in ("import torch", "import onnxruntime"):
        assert ast.literal_eval(run_python(library, promoted).splitlines()[-1]) == predicted
    # In the foreground `timeout` sends one signal, to the command alone; a second one would interrupt its exit.
    watched = run(
        f"timeout --foreground --signal INT 40 {typed('docs/review.md', 'expunge watch')}", promoted, status=124
    )
    assert "Traceback" not in watched


def run_python(imports: str, where: Path, **replaced: str) -> str:
    """Run the block of Python in docs/serving.md that has this import, and return what it printed."""
    found = [b.text for b in fences(ROOT / "docs/serving.md") if b.language == "python"]
    (text,) = [text for text in found if re.search(rf"^{imports}\b", text, re.MULTILINE)]
    for old, new in replaced.items():
        text = text.replace(old, new)
    (where / "block.py").write_text(text)
    return run("python block.py", where)


def write_rows(path: Path, request: Path) -> None:
    """Write the images of a request to the server as PNG files into a Parquet file."""
    images, files = np.array(json.loads(request.read_text())["inputs"], np.uint8), []
    for image in images.reshape(len(images), *images.shape[1:3]):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    pq.write_table(pa.table({"image": files}), path)


@pytest.mark.slow
def test_erased_rows_are_found_and_taken_out(promoted):
    look, erase, of_people, as_json = lines(typed("docs/deletion.md", "expunge sweep"))
    assert "expunge sweep --apply" in run(look, promoted)
    assert "Nothing is left." in run(erase, promoted)
    # The digits belong to nobody. tests/sweep/test_sweep.py erases people.
    (promoted / "people.txt").write_text("nobody\n")
    assert "1 of the people to erase are not in it and never were" in run(of_people, promoted, status=2)
    assert json.loads(run(as_json, promoted))["left"] == []


@pytest.mark.slow
def test_a_list_of_corrections_is_taken_in_and_passes_the_check(finished, tmp_path):
    """tests/erasure/test_corrections.py runs such a request."""
    home = tmp_path / "work"
    shutil.copytree(finished, home, symlinks=True)
    write, add, verify, _ = lines(typed("docs/correct.md", "printf"))
    run(write, home)
    (request,) = set(re.findall(r"R-\d{8}-\w{6}", run(add, home)))
    assert request in run(verify.replace("ID", request), home)
    run("cp labels.csv data/requests/corrections.csv && dvc add data/requests/corrections.csv", home)
    (settings,) = [b.text for b in fences(ROOT / "docs/correct.md") if "selector: correct" in b.text]
    params = params_with(home / "params.yaml", yaml.safe_load(settings))
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    assert "conflict" not in run("expunge check", home)


@pytest.mark.slow
def test_an_exact_claim_is_proved_again(tmp_path):
    """The workspace has four shards. Its certificate is R-1, in the place of REQUEST on the page."""
    run("python -c 'from tests.exact_workspace import delete; delete(\"shards\")'", tmp_path)
    again = typed("docs/exact.md", "expunge certificate audit records/certificates/REQUEST --key", REQUEST="R-1")
    assert "The claim was confirmed" in run(again, tmp_path)
    some = typed("docs/exact.md", "expunge certificate audit records/certificates/REQUEST --nonce", REQUEST="R-1")
    assert "The claim was confirmed" in run(some, tmp_path)


@pytest.mark.slow
def test_presets_are_listed_and_the_toy_runs(tmp_path):
    first = lines(typed("docs/reproduce.md", "expunge reproduce --list"))[0]
    assert "ru-cifar10-class" in run(first, tmp_path)
    run(said_in("docs/reproduce.md", "expunge reproduce ru-gaussians"), tmp_path)
    assert (tmp_path / ".expunge/reproduce/ru-gaussians/page.md").is_file()
