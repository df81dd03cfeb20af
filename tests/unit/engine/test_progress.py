from lethe.engine.progress import progress


def test_short_work_is_silent_and_all_of_it_is_done(capsys):
    assert list(progress(range(5), "scoring", "batch")) == list(range(5))
    assert capsys.readouterr().err.strip() == ""


def test_long_work_is_told_a_line_at_a_time(capsys):
    bar = progress(range(3), "scoring", "batch")
    bar.delay, bar.mininterval = 0, 0
    bar.refresh()
    assert "scoring: 0/3 batches," in capsys.readouterr().err
