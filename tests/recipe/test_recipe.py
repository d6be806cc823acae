from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ixtune.errors import UsageError
from ixtune.recipe.recipe import AdapterSection, DataSection, Recipe, TrainingSection, dump, load

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
SMALLEST = "base: nano\ndata:\n  train: prepared\noutput: runs/one\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a recipe into the current folder, so that messages are short."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes) -> Path:
        path = Path("r.yaml")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def mistakes(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return list(caught.value.notes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_describes_itself(path: Path):
    load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# ixtune train recipes/{path.name}")
    head = [line for line in lines if line.startswith("#")]
    for fact in ("purpose", "gpu", "status"):
        assert any(line.startswith(f"# {fact}: ") for line in head)


def test_at_least_one_recipe_is_shipped():
    assert SHIPPED


def test_the_first_line_of_every_recipe_is_a_train_command():
    for path in SHIPPED:
        words = path.read_text(encoding="utf-8").splitlines()[0].split()
        assert words[1:3] == ["ixtune", "train"]
        load(ROOT / words[3], words[4:])


def test_a_minimal_recipe_gets_every_default(write):
    recipe = load(write(SMALLEST))
    assert recipe == Recipe(base="nano", data=DataSection(train=Path("prepared")), output=Path("runs/one"))
    assert recipe.adapter.targets == ("wqkv", "wo", "w1", "w2", "w3")
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (64, 64, 0.05)
    assert (recipe.adapter.projector, recipe.adapter.quantize) == ("full", "nf4")
    assert (recipe.training.learning_rate, recipe.training.weight_decay) == (5e-5, 0.1)


def test_a_recipe_is_immutable(write):
    recipe = load(write(SMALLEST))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.training.seed = 1


def test_every_key_has_a_help_text():
    for section in (Recipe, DataSection, AdapterSection, TrainingSection):
        for name, field in section.model_fields.items():
            if name not in ("data", "adapter", "training"):
                assert field.description, f"{section.__name__}.{name}"


def test_all_mistakes_are_reported_at_once_with_their_lines(write):
    path = write(
        "base: nano\n"
        "data:\n"
        "  trian: prepared\n"
        "adapter:\n"
        "  targets: [wqkv, wq]\n"
        "  rank: many\n"
        "training:\n"
        "  rank: 8\n"
        "  learning_rate: -1\n"
        "  seed: 1\n"
        "  seed: 2\n"
        "outptu: runs\n"
    )
    assert mistakes(path, ["training.rnak=8", "adapter.alpha=0", "seed"]) == [
        "r.yaml:3: unknown key data.trian; did you mean data.train?",
        "r.yaml:5: adapter.targets.1 should be 'wqkv', 'wo', 'w1', 'w2' or 'w3', found 'wq'",
        "r.yaml:6: adapter.rank should be a whole number, found 'many'",
        "r.yaml:8: unknown key training.rank; did you mean adapter.rank?",
        "r.yaml:9: training.learning_rate should be greater than 0, found -1",
        "r.yaml:11: training.seed is given twice, first at r.yaml:10",
        "r.yaml:12: unknown key outptu; did you mean output?",
        "override training.rnak=8: unknown key training.rnak; did you mean adapter.rank?",
        "override adapter.alpha=0: adapter.alpha should be greater than 0, found 0",
        "override seed: an override has the form section.key=value",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: nano\ndta: {train: x}\noutput: y\n", ["r.yaml:2: unknown key dta; did you mean data?"]),
        ("base: nano\ntrain: x\noutput: y\n", ["r.yaml:2: unknown key train; did you mean data.train?"]),
        (
            "base: nano\ndata: {}\nadapter: {rnak: 8}\noutput: y\n",
            [
                "r.yaml:2: data.train is missing: Folder of a prepared training set, written by `ixtune prepare`, "
                "or a list of folders.",
                "r.yaml:3: unknown key adapter.rnak; did you mean adapter.rank?",
            ],
        ),
    ],
)
def test_a_misspelled_key_is_not_also_reported_as_missing(write, text: str, told: list[str]):
    assert mistakes(write(text)) == told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.weights=[1, 2]"], "data.weights should have one value per set in data.train, 1, not 2"),
        (["data.train=[]"], "data.train should list at least one prepared set, each once, found []"),
        (["adapter.per_target={projector: {rank: 2}}"], "adapter.per_target lists projector, which has no LoRA here"),
        (
            ["adapter.targets=[]", "adapter.projector=frozen"],
            "adapter.targets should list at least one linear if neither the projector nor the separators are trained",
        ),
        (["training.early_stopping=3"], "training.early_stopping needs data.validation"),
        (["training.scores=[anls]"], "training.scores needs data.validation"),
        (
            ["data.validation=held_out", "training.scores=[cer]", "training.best_by=anls"],
            "training.best_by is anls, which is not in training.scores",
        ),
        (["training.separators_learning_rate=1"], "training.separators_learning_rate needs adapter.separators"),
        (
            ["training.projector_learning_rate=1", "adapter.projector=frozen"],
            "training.projector_learning_rate needs a projector that is trained",
        ),
        (
            ["training.cache_vision_features=true", "adapter.separators=true"],
            "training.cache_vision_features does not work with adapter.separators: cached vectors contain them",
        ),
        (
            ["training.offload_layer_inputs=true", "training.gradient_checkpointing=false"],
            "training.offload_layer_inputs needs gradient_checkpointing: it offloads the inputs of checkpointed layers",
        ),
    ],
)
def test_contradictory_settings_are_refused(write, overrides: list[str], told: str):
    (found,) = mistakes(write(SMALLEST), overrides)
    assert found.endswith(": " + told)


def test_contradictions_are_reported_with_lines_next_to_wrong_values(write):
    path = write(
        SMALLEST
        + "adapter:\n  separators: true\n  rank: many\n"
        + "training:\n  sample_every: 5\n  early_stopping: 3\n  cache_vision_features: true\n  seed: -1\n"
    )
    assert mistakes(path, ["training.projector_learning_rate=1e-3", "adapter.projector=frozen"]) == [
        "r.yaml:7: adapter.rank should be a whole number, found 'many'",
        "r.yaml:9: training.sample_every needs data.validation",
        "r.yaml:10: training.early_stopping needs data.validation",
        "r.yaml:11: training.cache_vision_features does not work with adapter.separators: cached vectors contain them",
        "r.yaml:12: training.seed should be greater than or equal to 0, found -1",
        "override training.projector_learning_rate=1e-3: training.projector_learning_rate needs a projector that is "
        "trained",
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.early_stopping=3", "data.validation=7"],
        ["training.projector_learning_rate=1e-3", "adapter.projector=fozen"],
        ["data.weights=[1, 2]", "data.train=[a, 7]"],
        ["training.early_stopping=3", "data=none"],
    ],
)
def test_a_wrong_value_causes_no_contradiction(write, overrides: list[str]):
    """The intended value is unknown, so only the wrong value is reported."""
    (found,) = mistakes(write(SMALLEST), overrides)
    assert found.startswith(f"override {overrides[1]}: ")


def test_several_sets_and_per_target_settings_are_read(write):
    overrides = ["data.train=[a, b]", "data.weights=[1, 2.5]", "adapter.per_target={w2: {rank: 8}}"]
    recipe = load(write(SMALLEST), [*overrides, "training.gradient_checkpointing=3"])
    assert recipe.data.train == (Path("a"), Path("b"))
    assert recipe.data.weights == (1, 2.5)
    assert recipe.adapter.per_target["w2"].rank == 8
    assert recipe.training.gradient_checkpointing == 3
    write(dump(recipe))
    assert load(Path("r.yaml")) == recipe


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("trainning: {}", "did you mean training?"),
        ("training: {Seed: 1}", "did you mean training.seed?"),
        ("training: {lr_schedule: cosine}", "did you mean training.schedule?"),
        ("quantize: none", "did you mean adapter.quantize?"),
        ("training: {lr: 1e-4}", "did you mean training.learning_rate?"),
        ("xyzzy: 1", "unknown key xyzzy"),
    ],
)
def test_a_misspelled_key_gets_a_suggestion(write, line: str, told: str):
    (found,) = mistakes(write(SMALLEST + line))
    assert found.startswith("r.yaml:5: ")
    assert found.endswith(told)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("adapter.rank=true", "should be a whole number, found True"),
        ("adapter.rank='8'", "should be a whole number, found '8'"),
        ("adapter.rank=8.5", "should be a whole number, found 8.5"),
        ("adapter.rank=0x10", "should be a whole number, found '0x10'"),
        ("training.gradient_checkpointing=yes", "should be auto, true, false or a number of layers, found 'yes'"),
        ("training.gradient_checkpointing=0", "should be auto, true, false or a number of layers, found 0"),
        ("training.vision_chunk=0", "should be auto or a whole number greater than or equal to 1, found 0"),
        ("training.learning_rate=.nan", "should be a finite number, found nan"),
        ("training.learning_rate=.inf", "should be a finite number, found inf"),
        ("training.seed=4294967296", "should be less than 4294967296"),
        ("adapter.projector=half", "should be 'full', 'lora' or 'frozen', found 'half'"),
        ("adapter.targets=wqkv", "should be a list, found 'wqkv'"),
        ("adapter.targets=[wo, wo]", "should list each linear once, found ['wo', 'wo']"),
        ("adapter.targets=[wo, [w1]]", "adapter.targets.1 should be 'wqkv'"),
        (
            "training.scores=[anls, exact]",
            "training.scores.1 should be a known name, perhaps exact_match, found 'exact'",
        ),
        ("training.scores=[anls, xyzzy]", "training.scores.1 should be one of exact_match, anls, relaxed_accuracy, "),
        ("training.scores=[cer, cer]", "training.scores should list each score once, found ['cer', 'cer']"),
        ("training.best_by=ANSL", "training.best_by should be a known name, perhaps anls, found 'ANSL'"),
        ("training.best_by=xyzzy", "training.best_by should be one of loss, exact_match, anls, "),
        ("data.train=3", "data.train.0 should be a path, found 3"),
        ("base=", "base should be a text, found None"),
        ("training=", "training should be a section"),
        ("base.name=nano", "base is not a section"),
        ("training.seed.x=1", "training.seed should be a whole number, found {'x': 1}"),
        ("=1", "has the form section.key=value"),
        ("training..seed=1", "has the form section.key=value"),
        ("training.seed={", "is not valid YAML"),
        ("training.seed=\0", "is not valid YAML"),
        ("training.seed=" + 5000 * "[", "is not valid YAML"),
        ("training.seed=" + 5000 * "9", "is not a text, number, list or section"),
        ("training.seed=!!bool maybe", "is not a text, number, list or section"),
        ("output=!!python/object/apply:os.getcwd []", "is not a text, number, list or section"),
    ],
)
def test_a_wrong_override_is_quoted_in_the_error(write, override: str, told: str):
    found = mistakes(write(SMALLEST), [override])
    assert any(told in line for line in found), found
    assert all(line.startswith(f"override {override}"[:40]) for line in found)
    assert max(map(len, found)) < len(override) + 200


def test_overrides_replace_values_and_the_last_one_wins(write):
    overrides = [
        "adapter.rank=4",
        "adapter.rank=8",
        "training.learning_rate=1e-4",
        "data.validation=held out",
    ]
    recipe = load(write(SMALLEST + "adapter:\n  rank: 2\n  alpha: 3\n"), overrides)
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.training.learning_rate) == (8, 3, 1e-4)
    assert recipe.data.validation == Path("held out")


def test_an_override_replaces_an_invalid_value_in_the_file(write):
    assert load(write(SMALLEST + "adapter: {rank: many}\n"), ["adapter.rank=8"]).adapter.rank == 8


@pytest.mark.parametrize("override", ["training.scores=[foo]", "training.scores=[anls, foo]", "data.train=3"])
def test_a_wrong_item_of_an_override_is_not_blamed_on_the_file(write, override: str):
    text = "base: nano\ndata: {train: [a, b], validation: c}\ntraining: {scores: [anls]}\noutput: y\n"
    (found,) = mistakes(write(text), [override])
    assert found.startswith(f"override {override}: ")


def test_an_override_fills_a_section_with_comments_only(write):
    assert load(write(SMALLEST + "adapter:\n  # rank: 2\n"), ["adapter.rank=8"]).adapter.rank == 8


def test_a_whole_section_can_be_overridden(write):
    recipe = load(write(SMALLEST + "adapter: {rank: 2, alpha: 3}\n"), ["adapter={rank: 4}"])
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (4, 64)


def test_scalars_follow_yaml_1_2(write):
    """PyYAML's default rules would give False, the text '1e-4' and 8."""
    text = "base: no\ndata: {train: 2026-11-23}\noutput: off\n"
    recipe = load(write(text + "training: {learning_rate: 1e-4, weight_decay: 010, pack_tokens: 16_384}\n"))
    assert recipe.base == "no"
    assert (recipe.data.train, recipe.output) == ((Path("2026-11-23"),), Path("off"))
    assert (recipe.training.learning_rate, recipe.training.weight_decay) == (1e-4, 10)
    assert recipe.training.pack_tokens == 16_384


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no keys"),
        ("# only a comment\n", "holds no keys"),
        ("- base\n- data\n", "holds no keys"),
        ("nano", "holds no keys"),
        ("base: nano\n  data: x\n", "not valid YAML"),
        ("base: 'nano\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("base: na\0no\n", "not valid YAML"),
        ("a: &x [1]\nb: *x\n", r"aliases are not allowed in recipes.*r\.yaml:2"),
        ("a: &x [*x]\n", "aliases are not allowed in recipes"),
        (5000 * "[", "not valid YAML"),
        (b"base: nano\noutput: gr\xfcn\n", r"not UTF-8 text \(r\.yaml:2\)"),
        (b"#" * 70_000, "larger than 64 KiB"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused_in_one_line(write, content: str | bytes, told: str):
    with pytest.raises(UsageError, match=told) as caught:
        load(write(content))
    assert "\n" not in str(caught.value)
    assert "r.yaml" in str(caught.value)


def test_a_missing_file_and_a_folder_have_different_errors(tmp_path: Path):
    with pytest.raises(UsageError, match="no such recipe file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="no such recipe file") as shipped:
        load(Path("demo"))
    assert "ixtune recipes cp demo demo.yaml" in shipped.value.hint
    with pytest.raises(UsageError, match="a folder, not a file"):
        load(tmp_path)


def test_non_string_keys_and_tags_are_mistakes_with_a_line(write):
    found = mistakes(write(SMALLEST + "1: x\n? [a, b]\n: y\nadapter: !adapter {rank: 3}\n"))
    assert [line.partition(": ")[0] for line in found] == ["r.yaml:5", "r.yaml:6", "r.yaml:8", "r.yaml:8"]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.sampled_from(
    ["no", "1e5", "010", "null", "~", "2026-01-01", ".5", "1_0", "True", "<<", "=", " x", "a: b", "-", "#"]
)
paths = texts.map(Path)
positive = st.floats(min_value=1e-300, max_value=1e300)


@given(
    st.builds(
        Recipe,
        base=texts,
        data=st.builds(DataSection, train=paths, validation=st.none() | paths),
        adapter=st.builds(
            AdapterSection,
            targets=st.lists(st.sampled_from(["wqkv", "wo", "w1"]), min_size=1, unique=True).map(tuple),
            rank=st.integers(1, 10**9),
            alpha=positive,
            dropout=st.floats(0, 1, exclude_max=True),
        ),
        training=st.builds(
            TrainingSection,
            epochs=positive,
            max_steps=st.none() | st.integers(1),
            learning_rate=positive,
            projector_learning_rate=st.none() | positive,
            seed=st.integers(0, 2**32 - 1),
            cache_vision_features=st.booleans(),
        ),
        output=paths,
    )
)
def test_a_dumped_recipe_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe):
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(path) == recipe


def test_a_dump_contains_every_key(write):
    dumped = dump(load(write(SMALLEST)))
    for section in (Recipe, DataSection, AdapterSection, TrainingSection):
        assert all(f"{name}:" in dumped for name in section.model_fields)


def test_a_recipe_accepts_exactly_the_existing_scores(write):
    """The schema lists their names, for completion in editors."""
    from ixtune.scores import SCORES

    every = f"training.scores=[{', '.join(SCORES)}]"
    recipe = load(write(SMALLEST), [every, "data.validation=held_out", "training.best_by=cer"])
    assert recipe.training.scores == tuple(SCORES)
    assert (recipe.training.best_by, recipe.training.score_records) == ("cer", 64)
    properties = TrainingSection.model_json_schema()["properties"]
    assert properties["scores"]["items"]["enum"] == list(SCORES)
    assert properties["best_by"]["enum"] == ["loss", *SCORES]
