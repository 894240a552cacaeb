"""The report of shapes: what it says is so, it shows what it was given, and it asks for nothing from outside."""

import base64
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest

from partwhole.shape3d.render import colours, pictures
from partwhole.shape3d.report import Shown, few_shot_summary, write_report
from partwhole.shape3d.viewer import morton, octahedral, viewer

EVIL = '</script><b onclick="x">&\'"'


def ball(seed: int, count: int = 400, **options) -> Shown:
    """A ball beside a plate: two parts, three components, a prediction that is wrong on about a tenth."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    truth = (np.arange(count) % 2).astype(np.int64)
    plate = np.stack([rng.uniform(0.5, 1.5, count), rng.uniform(-0.5, 0.5, count), np.zeros(count)], 1)
    points = np.where(truth[:, None] == 0, normals * 0.4 - [0.5, 0, 0], plate).astype(np.float32)
    normals = np.where(truth[:, None] == 0, normals, [0, 0, 1]).astype(np.float32)
    prediction = np.where(rng.random(count) < 0.1, 1 - truth, truth)
    layers = {"component": truth + (points[:, 0] > 1), "truth": truth, "prediction": prediction}
    options = {"score": float((truth == prediction).mean()), "parts": ["ball", "plate"], **options}
    return Shown(options.pop("name", f"{seed}.off"), points, layers, normals=normals, **options)


def arms(scratch: list[float], finetune: list[float], shots=(1, 5)) -> dict:
    def result(mean: float) -> dict:
        values = [mean - 0.01, mean, mean + 0.01]
        return {"category_iou": values, "shape_iou": [v + 0.05 for v in values], "per_category": {"Cup": values}}

    made = {"scratch": scratch, "finetune": finetune}
    return {
        "shots": list(shots),
        "draws": 3,
        "arms": {a: {str(k): result(m) for k, m in zip(shots, means, strict=True)} for a, means in made.items()},
        "supports": [{"draw": 0, "Cup": ["cup <1>.off"]}],
    }


EVALUATION = {
    "few_shot": arms([0.50, 0.61], [0.60, 0.70]),
    "classification": {"svm": {"random": [0.7, 0.72], "pretrained": [0.8, 0.82]}},
    "decomposition": {
        "engine": "coacd",
        "shapes": 50,
        "done": 40,
        "cached": 9,
        "failed": [["bad & worse.obj", "no faces <none>"]],
        "components": {"min": 1, "mean": 7.25, "max": 9, "histogram": [[1, 10], [9, 30]]},
        "seconds": 12.5,
    },
}
RUN = {"recipe": {"fit": {"lr": 0.001}}, "command": ["python", "tools/run.py", "--folder", "my run"], "seed": 0}
METRICS = [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)]
SECTIONS = {
    "What the labels bought": {"evaluation": {"few_shot": EVALUATION["few_shot"]}},
    "Which category: classification": {"evaluation": {"classification": EVALUATION["classification"]}},
    "Shapes": {"shown": [ball(0)]},
    "Turn them yourself": {"shown": [ball(0)]},
    "The decomposition behind it": {"evaluation": {"decomposition": EVALUATION["decomposition"]}},
    "Training curves": {"metrics": METRICS},
    "Configuration": {"run": RUN},
}


def headings(html: str) -> list[str]:
    return re.findall("<h2[^>]*>([^<]*)</h2>", html)


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_whole_report_has_every_section_and_refers_to_nothing_outside(tmp_path):
    path = write_report(tmp_path, evaluation=EVALUATION, run=RUN, metrics=METRICS, shown=[ball(i) for i in range(5)])
    html = path.read_text(encoding="utf-8")
    assert headings(html) == list(SECTIONS)
    code = re.sub(r"base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|//cdn|@import|\bfetch\(|XMLHttpRequest|importScripts|WebSocket", code)
    for value in re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", code):
        assert value.startswith(("data:", "#")), value
    assert "default-src 'none'" in html
    for text in ("python tools/run.py --folder &#x27;my run&#x27;", "bad &amp; worse.obj", "no faces &lt;none&gt;"):
        assert text in html
    assert "cup &lt;1&gt;.off" in html
    assert sorted(p.name for p in (tmp_path / "ply").iterdir()) == [f"{i}.off.ply" for i in range(5)]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_there_only_with_its_data(tmp_path, section):
    html = write_report(tmp_path, **SECTIONS[section]).read_text(encoding="utf-8")
    with_shapes = {"Shapes", "Turn them yourself"}
    assert set(headings(html)) == (with_shapes if section in with_shapes else {section})


def test_an_empty_folder_gives_a_page_and_a_full_one_is_read(tmp_path):
    assert headings(write_report(tmp_path).read_text(encoding="utf-8")) == []
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, METRICS)))
    found = headings(write_report(tmp_path).read_text(encoding="utf-8"))
    assert found == [s for s in SECTIONS if "shown" not in SECTIONS[s]]


def test_E3_a_collapse_stands_at_the_top_of_the_page(tmp_path):
    metrics = [{"step": i, "loss": 4.143135, "features/std": 0.0, "lr": 1.0} for i in range(20)]
    text = write_report(tmp_path, metrics=metrics, evaluation=EVALUATION).read_text()
    assert text.index("gives the same for every input") < text.index("<h2")
    assert "loss has stayed at 4.143 = ln 63" in text
    assert "Careful" not in write_report(tmp_path, metrics=METRICS, evaluation=EVALUATION).read_text()


def test_an_evaluation_with_gaps_is_reported_as_far_as_it_goes(tmp_path):
    few = arms([0.5, 0.6], [0.6, 0.7])
    del few["arms"]["finetune"]["5"], few["draws"], few["supports"]
    few["arms"]["scratch"]["1"] = {"category_iou": [0.5, None, float("nan")]}
    few["arms"]["mine <new>"] = {"1": {"category_iou": [0.9]}}
    evaluation = {"few_shot": few, "decomposition": {"shapes": 3, "failed": []}}
    html = write_report(tmp_path, evaluation=evaluation).read_text(encoding="utf-8")
    assert "mine &lt;new&gt;" in html
    assert "nan" not in re.sub("<style>.*?</style>", "", html, flags=re.S).lower()


def test_names_cannot_break_out_of_the_page_or_the_folder(tmp_path):
    evil = [
        ball(0, name=EVIL, parts=[EVIL, "b"], category=EVIL),
        ball(1, name="../../up"),
        ball(2, name="UP"),
        ball(3, name="up"),
    ]
    html = write_report(tmp_path / "run", shown=evil, title=EVIL, about=EVIL).read_text(encoding="utf-8")
    assert "<b onclick" not in html
    assert html.count("</script>") == html.count("<script")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    names = [p.stem.lower() for p in (tmp_path / "run" / "ply").iterdir()]
    assert len(names) == len(set(names)) == 4


def test_worst_and_best_are_the_worst_and_the_best(tmp_path):
    scores = [0.9, 0.1, None, 0.5, float("nan"), 0.3, 0.7]
    shown = [ball(i, 60, name=f"shape{i}", score=s) for i, s in enumerate(scores)]
    html = write_report(tmp_path, shown=shown, extreme=2).read_text(encoding="utf-8")
    cards = {
        t: re.findall(r"<b>(shape\d)</b>", part)
        for t, part in re.findall(r"<h3>([^<]*)</h3>(.*?)(?=<h3>|<h2)", html, re.S)
    }
    assert cards["The worst"] == ["shape1", "shape5"]
    assert cards["The best"] == ["shape0", "shape6"]
    assert len(cards["A sample"]) == 7


def test_a_sample_takes_from_every_category(tmp_path):
    shown = [ball(i, 40, name=f"n{i}", category="rare" if i % 10 == 9 else "common") for i in range(40)]
    html = write_report(tmp_path, shown=shown, sample=8, extreme=0).read_text(encoding="utf-8")
    cards = re.findall(r"<b>(rare|common) n(\d+)</b>", html)
    assert len(cards) == 8
    assert [c for c, _ in cards].count("rare") == 4
    common = [int(n) for c, n in cards if c == "common"]
    assert max(np.diff(common)) <= 20  # spread over the list, not its beginning


def test_shapes_without_labels_stand_apart_and_labelled_ones_come_first_in_the_viewer(tmp_path):
    plain = ball(0, 60, name="plain")
    plain = Shown("plain", plain.points, {"component": plain.layers["component"]})
    html = write_report(tmp_path, shown=[plain, ball(1, 60, name="known")]).read_text(encoding="utf-8")
    assert re.findall("<h3>([^<]*)</h3>", html) == ["Convex components of shapes without labels", "A sample"]
    assert [s["name"] for s in unpack(html)[0]] == ["known", "plain"]


# -- words -----------------------------------------------------------------------------------------------------------


def test_the_summary_says_what_the_labels_bought():
    text = few_shot_summary(arms([0.50, 0.61], [0.60, 0.70]))
    assert "With 1 labelled shape per category ACD pre-training (fine-tuned) reaches .60 ± .01 mean part IoU" in text
    assert "from scratch .50 ± .01: 10 points more" in text
    assert "with 5 ACD" in text
    assert (
        "To reach what 1 labelled reached that way, training from scratch needs 5 labelled shapes per category." in text
    )
    assert "3 draws" in text


def test_the_summary_is_honest_when_pretraining_does_not_help():
    assert "20 points less" in few_shot_summary(arms([0.7, 0.9], [0.5, 0.7]))
    assert ": 1 point more, within the spread" in few_shot_summary(arms([0.50, 0.9], [0.512, 0.7]))
    assert "no difference" in few_shot_summary(arms([0.5, 0.6], [0.501, 0.7]))
    assert "does not get there with 5 labelled shapes" in few_shot_summary(arms([0.1, 0.2], [0.6, 0.7]))
    assert "To reach" not in few_shot_summary(arms([0.7, 0.9], [0.5, 0.7]))
    assert few_shot_summary({}) == ""
    assert few_shot_summary({"shots": [1], "arms": {"scratch": {}}}) == ""


def test_gains_are_paired_by_draw(tmp_path):
    few = arms([0.5, 0.6], [0.6, 0.7])
    few["arms"]["scratch"]["1"]["category_iou"] = [0.1, 0.5, 0.9]
    few["arms"]["finetune"]["1"]["category_iou"] = [
        0.2,
        0.6,
        1.0,
    ]  # every draw is 10 points better, whatever their spread
    html = write_report(tmp_path, evaluation={"few_shot": few}).read_text(encoding="utf-8")
    table = html.split("Difference to training from scratch")[1].split("</table>")[0]
    assert '<td class="number">10.0 <span class="spread">± 0.0</span></td>' in table


# -- shapes ----------------------------------------------------------------------------------------------------------


def unpack(html: str) -> tuple[list, dict]:
    """Reads the viewer's payload as its script does."""
    head = json.loads(re.search('id="viewer-shapes">(.*?)</script>', html, re.S)[1])  # pyright: ignore
    packed = re.search('id="viewer-packed">(.*?)</script>', html, re.S)[1]  # pyright: ignore
    data = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    total = sum(s["points"] for s in head)
    axes = [
        data[2 * a * total :][:total].astype(int) + 256 * data[(2 * a + 1) * total :][:total].astype(int)
        for a in range(3)
    ]
    xyz = np.stack([np.cumsum(a) % 65536 for a in axes], 1) / 2047.5 - 1
    u, v = (data[(6 + i) * total :][:total] / 127.5 - 1 for i in range(2))
    w = 1 - abs(u) - abs(v)
    fold = np.maximum(-w, 0)
    normal = np.stack([u + np.where(u < 0, fold, -fold), v + np.where(v < 0, fold, -fold), w], 1)
    return head, {
        "xyz": xyz,
        "normal": normal / np.linalg.norm(normal, axis=1, keepdims=True),
        "labels": data[8 * total :],
    }


def test_the_viewer_holds_the_shapes_it_was_given():
    shapes = [ball(0, 300).with_error(), ball(1, 500).with_error(), ball(2, 3)]
    head, found = unpack(viewer(shapes, points=400))
    assert [s["points"] for s in head] == [300, 400, 3]
    assert len(found["labels"]) == 4 * 300 + 4 * 400 + 3 * 3
    points = np.asarray(shapes[0].points, float)
    points = points - (points.min(0) + points.max(0)) / 2
    points /= np.linalg.norm(points, axis=1).max()
    distance = np.linalg.norm(points[:, None] - found["xyz"][None, :300], axis=2)
    match = distance.argmin(0)
    assert distance.min(0).max() < 1e-3
    assert sorted(match) == list(range(300))
    agree = (np.asarray(shapes[0].normals)[match] * found["normal"][:300]).sum(1)
    assert abs(agree).min() > np.cos(np.radians(2))
    for i, layer in enumerate(head[0]["layers"]):
        values = np.array([v[0] for v in layer["values"]])
        labels = found["labels"][300 * i : 300 * (i + 1)]
        given = np.asarray(shapes[0].layers[layer["name"]])[match]
        if layer["name"] == "error":
            assert (values[labels] == np.array(["right", "wrong"])[given]).all()
        elif layer["name"] == "truth":
            assert (values[labels] == np.array(["ball", "plate"])[given]).all()
        rgb = np.array([v[1] for v in layer["values"]])[labels]
        assert (rgb == colours(given, layer["name"])).all()


def test_a_shape_weighs_no_more_than_twenty_kilobytes_in_the_viewer():
    fixed = len(viewer([ball(0, 4)]))
    weight = (len(viewer([ball(i, 2048).with_error() for i in range(4)])) - fixed) / 4
    assert weight < 20_000


def test_more_than_two_hundred_and_fifty_components_still_fit():
    shape = ball(0, 1000)
    head, found = unpack(viewer([Shown("many", shape.points, {"component": np.arange(1000)})]))
    assert len(head[0]["layers"][0]["values"]) > found["labels"].max()


def test_error_is_unknown_where_the_truth_is():
    shape = Shown("a", np.eye(3), {"truth": np.array([-1, 0, 1]), "prediction": np.array([0, 0, 0])}).with_error()
    assert list(shape.layers["error"]) == [-1, 0, 1]
    assert len({tuple(c) for c in colours(np.asarray(shape.layers["error"]), "error")}) == 3


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_the_up_axis_points_up_and_hands_stay_hands(up):
    shape = Shown("a", np.eye(3), {"component": np.zeros(3, int)}, normals=np.eye(3))
    turned = np.asarray(shape.upright(up).points)
    assert list(turned["xyz".index(up)]) == [0, 1, 0]
    assert np.linalg.det(turned) == pytest.approx(1)  # a mirrored shape would be another shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((3, 2))}, r"points must be \(P, 3\) with P > 0, got \(3, 2\)"),
        ({"points": np.full((3, 3), np.nan)}, "points hold NaN"),
        ({"layers": {}}, "needs at least one layer"),
        (
            {"layers": {"truth": np.zeros(4, int)}},
            r"layer 'truth' must have a label for each point, \(3,\), got \(4,\)",
        ),
        ({"normals": np.zeros((2, 3))}, r"normals must be like points, \(3, 3\), got \(2, 3\)"),
    ],
)
def test_arrays_that_do_not_go_together_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"cup: {message}"):
        Shown(**{"name": "cup", "points": np.eye(3), "layers": {"truth": np.zeros(3, int)}, **change})


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.zeros((50, 3)), np.eye(3), np.array([[0, 0, 0], [1e9, 0, 0]])])
def test_degenerate_clouds_are_drawn_without_a_warning(points, tmp_path):
    layers = {"component": np.zeros(len(points), int)}
    assert pictures(points, layers, size=40)["component"][..., 3].max() > 0
    write_report(tmp_path, shown=[Shown("flat", points, layers)])


def test_morton_order_keeps_neighbours_together():
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 4096, (2000, 3)).astype(np.uint16)
    step = np.abs(np.diff(grid[np.argsort(morton(grid))].astype(int), axis=0)).mean()
    assert step < 0.2 * np.abs(np.diff(grid.astype(int), axis=0)).mean()
    assert octahedral(np.array([[0.0, 0, 1]])).tolist() == [[128, 128]]


# -- the slow ones ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_shapes_weigh_about_two_megabytes(tmp_path):
    shown = [ball(i, 2048, category="ab"[i % 2]) for i in range(100)]
    path = write_report(tmp_path, evaluation=EVALUATION, run=RUN, metrics=METRICS, shown=shown, sample=6, extreme=0)
    assert len(viewer([s.with_error() for s in shown])) < 2_200_000
    assert path.stat().st_size < 5_000_000


DRIVE = """<script>
(function wait() {
  const box = document.querySelector(".viewer");
  if (box.dataset.ready !== "yes") return setTimeout(wait, 20);
  HTMLCanvasElement.prototype.setPointerCapture = () => {};
  const before = box.dataset.turn, canvas = box.querySelector("canvas.big");
  const send = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, { pointerId: 1, clientX: x, clientY: y }));
  send("pointerdown", 10, 10); send("pointermove", 90, 40); send("pointerup", 90, 40);
  setTimeout(() => {
    box.dataset.turned = before === box.dataset.turn ? "no" : "yes";
    const seen = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    box.dataset.filled = seen.filter((v, i) => i % 4 === 3 && v === 255).length;
    new Image().src = "http://127.0.0.1:9/never.png";
  }, 400);
})();
</script>"""


@pytest.mark.slow
def test_a_browser_turns_the_shapes_without_an_error_or_a_request(tmp_path):
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("needs Chromium (apt-get install chromium) to open the page")
    path = write_report(tmp_path, evaluation=EVALUATION, run=RUN, metrics=METRICS, shown=[ball(i) for i in range(3)])
    html = path.read_text(encoding="utf-8").replace("</body>", f"{DRIVE}</body>")
    path.write_text(html, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run([browser, *flags, path.as_uri()], capture_output=True, text=True, timeout=120)
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout[done.stdout.index('<div class="viewer') :][:2000]))
    assert found["ready"] == "yes"
    assert found["turned"] == "yes"
    assert int(found["filled"]) > 3000
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # The one request there is was sent by this test, to see that the page's policy forbids it.
    assert len(said) == 1, said
    assert "violates the following Content Security Policy directive" in said[0]
