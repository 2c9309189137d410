"""The whole workflow under ``--software-deployment-method conda``, with a stand-in for the conda client.

The stand-in answers Snakemake's questions, and makes environments whose Python can import the packages that
the environment file lists and no others of ours. So every rule really runs in its own environment, through
Snakemake's activation, and finds the package virnucpro there; only the installation from a channel is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.unit.test_envs import NAMES, WITHOUT, modules

ROOT = Path(__file__).parents[2]

CLIENT = """#!{python}
import json, sys
from pathlib import Path
import yaml
words = sys.argv[1:]
if words == ["info", "--json"]:
    print(json.dumps({{"conda_prefix": "{base}", "platform": "linux-64"}}))
elif words == ["--version"]:
    print("conda 25.11.0")
elif words[:3] == ["config", "--get", "channel_priority"]:
    print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
elif words[0] == "clean":
    pass
elif words[:2] == ["env", "create"]:
    prefix, text = Path(words[words.index("--prefix") + 1]), Path(words[words.index("--file") + 1]).read_text()
    name = next(name for name, known in {texts!r}.items() if yaml.safe_load(known) == yaml.safe_load(text))
    (prefix / "bin").mkdir(parents=True)
    (prefix / "sitecustomize.py").write_text({finders!r}[name])
    python = prefix / "bin" / "python"
    run = f'PYTHONPATH={{prefix}}:$PYTHONPATH exec {python} "$@"'
    python.write_text(f'#!/bin/sh\\necho {{name}} >> "{base}/used"\\n{{run}}\\n')
    python.chmod(0o755)
else:
    sys.exit(f"the stand-in for conda does not know {{words}}")
"""


def stand_in(base: Path) -> None:
    """Write ``conda`` and ``activate`` to ``base/bin``."""
    ours = set().union(*(modules(name) for name in NAMES))
    finder = WITHOUT.replace("exec(sys.argv[2])\n", "")
    finders = {
        name: finder.replace('sys.argv[1].split(",")', repr(sorted(ours - modules(name) | {"pandas", "yaml"})))
        for name in NAMES
    }
    texts = {name: (ROOT / "envs" / f"{name}.yaml").read_text(encoding="utf-8") for name in NAMES}
    (base / "bin").mkdir(parents=True)
    client = base / "bin" / "conda"
    client.write_text(CLIENT.format(python=sys.executable, base=base, texts=texts, finders=finders))
    client.chmod(0o755)
    (base / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n')


@pytest.mark.slow  # half a minute
def test_every_rule_runs_in_its_environment(tmp_path: Path) -> None:
    stand_in(tmp_path / "conda")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "examples" / "viral_contigs.fna", work)
    path = os.pathsep.join([str(tmp_path / "conda" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PATH": path}
    done = subprocess.run(
        [
            "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--directory", work, "--cores", "2",
            "--software-deployment-method", "conda",
            "--config", "samples=viral_contigs.fna", "input=nucleotide", "model=esm2_demo", "layers=last",
        ],
        env=environment, cwd=work, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert set((tmp_path / "conda" / "used").read_text().split()) == set(NAMES)
    assert pq.read_table(work / "results" / "viral_contigs" / "embeddings.parquet").num_rows > 10
