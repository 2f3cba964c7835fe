"""Progress in lines: now and then, with what is left, and once at the end."""

from ablax.data.progress import told


def test_a_line_now_and_then_and_one_at_the_end():
    """Catches: silence until the end; a line per chunk; a whole time for work that was found done."""
    seconds = iter([0, 1, 5, 6, 9, 20, 40, 41])
    lines = []
    report = told(lines.append, 5, lambda: next(seconds))
    for done in (0, 10, 50, 60, 90, 200):
        report("tokenising train", done, 200)
    assert lines == [
        "tokenising train: 50 of 200 documents (25%), about 15 s left",
        "tokenising train: 200 documents in 20.0 s",
    ]
    report("tokenising validation", 3, 3)  # built by another before we looked
    assert len(lines) == 2
    report("tokenising test", 0, 3)
    assert len(lines) == 2
