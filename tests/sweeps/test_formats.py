"""A report in other formats: what a browser and LaTeX make of it."""

import html.parser
import io
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest

from ablax.sweeps.forest import differences
from ablax.sweeps.formats import html as page_of
from ablax.sweeps.formats import latex
from ablax.sweeps.page import rows

CHROMIUM = shutil.which("chromium")
PROBE = """<script>
const root = document.documentElement, image = document.images[0];
document.title = [root.scrollWidth - root.clientWidth, getComputedStyle(document.body).backgroundColor,
  image.naturalWidth, document.querySelector(".table").scrollWidth,
  performance.getEntriesByType("resource").length].join(";");
</script></body>"""


def arm(name, difference, interval, **more):
    row = dict.fromkeys(
        ("p_holm", "effect", "warning", "why", "correlation", "same_batches", "changes", "floor")
    )
    row |= {
        "star": False,
        "tangled": False,
        "exploratory": False,
        "split": "test",
        "flops": None,
        "these_models": (-0.1, 0.1),
        "these_seeds": 3,
    }
    row |= {"arm": name, "n": 3, "mean": 2.0, "difference": difference, "interval": interval}
    row |= {"parameters": 1000.0, "seconds": 10.0, "tokens_per_second": 5e4}
    return {**row, "detectable": 0.2, "seeds_needed": 4, **more}


FOUND = {
    "experiment": "<script>alert(1)</script>.py",
    "metric": "bits_per_byte",
    "unit": "bits per byte",
    "baseline": "base",
    "arms": [
        arm(
            "wide & 50 % <b>",
            -0.5,
            (-0.6, -0.4),
            p_holm=0.01,
            effect=-3.0,
            correlation=0.9,
            star=True,
            flops=1e12,
        ),
        arm("lucky_one $x_{$", -0.1, (-0.3, 0.1), p_holm=0.4, effect=-0.5),
        arm("even", 0.0, (-0.5, 0.5), p_holm=1.0, effect=0.0, seeds_needed=None),
        arm("alone", 0.2, None, why="one seed\nand no more"),
        arm("base", None, None),
    ],
    "not_comparable": [],
    "looks": ["looked at early"],
    "exploratory": ["metric bits_per_byte in place of the plan's loss"],
    "noise": {"repeat": 0.01, "seed": 0.02, "evaluation": None},
    "effects": [
        {
            "factors": ["a", "<b>"],
            "aliases": ["c"],
            "effect": 0.5,
            "interval": [0.4, 0.6],
            "p_holm": 0.01,
        }
    ],
    "no_effects": None,
    "responses": [],
    "scaling": None,
    "tuning": {},
    "branches": [],
    "planned": 4,
    "statuses": {"finished": 3, "failed": 1},
    "unfinished": [
        {
            "cell": "a/seed0",
            "status": "failed",
            "error": "<i>loss</i> is nan",
            "log": ["<u>end</u>"],
        }
    ],
    "others": {"a/seed1": ["jax 0.1, where most have 0.2"]},
    "added": ["even"],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    assert differences(FOUND, folder / "differences.png")
    made = folder / "report.html"
    night = io.BytesIO()
    assert differences(FOUND, night, dark=True)
    pictures = {"Differences": folder / "differences.png"}
    made.write_text(page_of(FOUND, pictures, {"Differences": night.getvalue()}), encoding="utf-8")
    return made


class Text(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_beside_it_and_runs_nothing(page):
    """Catches: a name of an arm or an error that becomes markup, a picture or a font from elsewhere."""
    read = Text(page.read_text())
    names = [tag for tag, _ in read.tags]
    assert "script" not in names
    assert "b" not in names
    assert "i" not in names
    assert "link" not in names
    sources = [
        attrs.get("src") or attrs.get("srcset") or attrs.get("href") or "data:"
        for _, attrs in read.tags
    ]
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in page.read_text()
    for row in rows(FOUND):
        assert all(cell in read.text for cell in row)
    assert any("<i>loss</i> is nan" in text for text in read.text)


def test_latex_escapes_what_is_its_own():
    """Catches: a percent sign that comments out the rest of a row, a line that a comment does not cover."""
    lines = latex(FOUND).splitlines()
    (row,) = (line for line in lines if "wide" in line and not line.startswith("%"))
    assert row.strip().startswith(
        r"wide \& 50 \% \textless{}b\textgreater{} & 2.0000 & 3 & $-$0.5000"
    )
    assert row.count(" & ") == len(rows(FOUND)[0]) - 1
    assert row.endswith(r" \\")
    assert any(r"lucky\_one \$x\_\{\$" in line for line in lines)
    after = lines[lines.index(r"\end{table}") + 1 :]
    assert after
    assert all(line.startswith("% ") for line in after)


def test_intervals_that_hold_zero_are_grey(tmp_path):
    """Catches: an arm in colour because its difference is large."""

    def coloured(row):
        assert differences({**FOUND, "arms": [row]}, tmp_path / "one.png")
        pixels = matplotlib.image.imread(tmp_path / "one.png")[..., :3]
        return bool((np.ptp(pixels, axis=-1) > 0.3).any())

    assert [coloured(row) for row in FOUND["arms"][:4]] == [True, False, False, False]
    assert not differences({**FOUND, "arms": FOUND["arms"][4:]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.ci
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(page, tmp_path, width, dark):
    """Catches: a page wider than its window, one that is white in the dark, a picture that is not there."""
    copy = tmp_path / "report.html"
    copy.write_text(page.read_text().replace("</body>", PROBE))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command += ["--blink-settings=preferredColorScheme=0"] * dark
    done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=60)
    found = re.search(r"<title>([^<]*)</title>", done.stdout)
    assert found, done.stderr
    over, colour, natural, table, requests = found[1].split(";")
    assert (int(over), int(requests)) == (0, 0)
    assert int(natural) > 500
    assert int(table) > 500
    brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert (brightness < 60) if dark else (brightness > 240)
