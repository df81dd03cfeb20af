from pathlib import Path

GUIDE = Path(__file__).parents[3] / "docs/completion.md"


def test_the_example_of_the_guide_runs_and_predicts_within_its_error_bars():
    code = GUIDE.read_text("utf-8").split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    hidden, new = names["hidden"], names["new"]
    error = (names["predicted"] - new)[hidden]
    assert (error**2).mean() < 0.25 * new[hidden].var()
    assert 0.8 < ((names["low"] <= new) & (new <= names["high"])).mean() < 1
