"""A second opinion on the corpora: whatever we accept, go-spiffe accepts, but for what the corpora list with its reason."""

import json
from pathlib import Path

from ..harness import case, run

CORPUS = Path(__file__).resolve().parents[3] / "corpus"


def verdicts(world):
    """What go-spiffe says of every case, once."""
    told = world.folder / "verdicts"
    if not told.exists():
        env = {"CORPUS": str(CORPUS), "VERDICTS": str(told), "PATH": "/usr/bin:/bin"}
        run([world.have["GO_SPIFFE"], "-test.run", "^TestVerdicts$", "-test.count", "1"], env=env, deadline=120).ok()
    return [json.loads(line) for line in told.read_text().splitlines()]


def agree(world, corpus, at_least):
    mine = [v for v in verdicts(world) if v["corpus"] == corpus]
    assert len(mine) >= at_least, f"go-spiffe was asked about {len(mine)} cases only"
    both = [v for v in mine if v["ours"] == v["theirs"] == "ok"]
    assert len(both) >= 50, f"both accept {len(both)} cases only: go-spiffe was not really asked"
    listed = {(d["file"], d["name"]): d["reason"] for d in json.loads((CORPUS / corpus / "differences.json").read_text())}
    assert all(reason.strip() for reason in listed.values()), "a difference without its reason"
    differ = {(v["file"], v["name"]): v["why"] for v in mine if v["ours"] == "ok" and v["theirs"] != "ok"}
    unexplained = {where: why for where, why in differ.items() if where not in listed}
    assert not unexplained, f"accepted by us and refused by go-spiffe: {unexplained}"
    assert not listed.keys() - differ.keys(), f"listed as a difference, but there is none: {sorted(listed.keys() - differ.keys())}"
    refused = sum(v["ours"] == "refuse" and v["theirs"] == "ok" for v in mine)
    print(f"     {len(mine)} cases: {len(both)} accepted by both, {len(differ)} by us alone (listed), {refused} by go-spiffe alone")


@case("corpora: go-spiffe accepts every X.509-SVID that we accept", needs=("go_spiffe",))
def x509_corpus(world):
    agree(world, "spiffe-x509", 1000)


@case("corpora: go-spiffe accepts every JWT-SVID that we accept", needs=("go_spiffe",))
def jwt_corpus(world):
    agree(world, "jwt-svid", 300)
