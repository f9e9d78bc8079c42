"""Mistakes are counted by kind, and the first of each are shown."""

from defcn_d2.data.readers.findings import EXAMPLES, Findings, Kind

FATAL = Kind("boxes without a name", "name them")
ODD = Kind("red boxes", "they are kept", fatal=False)


def test_nothing_found():
    findings = Findings()
    findings.add_all(ODD, [], str)
    assert findings.sentences(fatal=True) == findings.sentences(fatal=False) == []


def test_sentences():
    findings = Findings()
    findings.add(FATAL, "box 3")
    findings.add_all(ODD, range(1500), lambda number: f"box {number}")
    findings.add(FATAL, "box 7")
    assert findings.sentences(fatal=True) == [
        "boxes without a name: 2, first box 3, box 7; name them"
    ]
    assert findings.sentences(fatal=False) == [
        "red boxes: 1,500, first box 0, box 1, box 2, ...; they are kept"
    ]


def test_what_is_not_shown_is_not_described():
    described = []
    Findings().add_all(ODD, range(100), lambda number: described.append(number) or "")
    assert described == list(range(EXAMPLES))
