"""Command lines and YAML files become one config, or one clear message."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from configs.identity import digest
from configs.load import RECIPES, build_parser, load_config
from configs.schema import RunConfig
from tests.support.processes import run_code

build_once = functools.cache(build_parser)
RECIPE_NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(*argv: object) -> RunConfig:
    return load_config([str(arg) for arg in argv], prog="train", description="Train a model.")


def refusal(*argv: object) -> str:
    """The message a command line is refused with: one line, whatever the reason."""
    with pytest.raises(InputError) as caught:
        load(*argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One parser for all tests: building it takes longer than all it does."""
    monkeypatch.setattr("configs.load.build_parser", build_once)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_yaml(text: str | bytes, name: str = "given.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_yaml


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_recipe_loads_and_is_named_like_its_file(name: str) -> None:
    assert load("--config", RECIPES / f"{name}.yaml").name == name


def test_no_arguments_mean_the_mnist_recipe() -> None:
    assert load() == load("--config", "mnist")
    assert load().name == "mnist"


@pytest.mark.parametrize(
    "given", ["fashion_mnist", "fashion_mnist.yaml", "configs/fashion_mnist.yaml"]
)
def test_a_recipe_is_found_from_any_working_directory(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("--config", given).name == "fashion_mnist"
    assert load(f"--config={given}").name == "fashion_mnist"


def test_a_file_in_the_working_directory_goes_before_a_recipe_of_its_name(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("name: mine", "mnist.yaml")
    monkeypatch.chdir(tmp_path)
    assert load("--config", "mnist.yaml").name == "mine"


@pytest.mark.parametrize(
    ("given", "closest"),
    [("mnst", "'mnist'"), ("fashon_mnist", "'fashion_mnist'"), ("nothing/like/it", None)],
)
def test_a_missing_file_is_answered_with_the_recipes_there_are(
    given: str, closest: str | None
) -> None:
    message = refusal("--config", given)
    assert message.startswith(f"--config: given {given!r}")
    assert all(name in message for name in RECIPE_NAMES)
    assert (f"Did you mean {closest}" in message) == (closest is not None)


@pytest.mark.parametrize("given", ["{tmp}/mnist.yaml", "experiments/mnist.yaml"])
def test_a_mistyped_path_is_not_replaced_by_a_recipe_of_that_name(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a folder that was named and is not there is an error, never another file."""
    monkeypatch.chdir(tmp_path)
    given = given.format(tmp=tmp_path)
    assert given in refusal("--config", given)


def test_a_folder_is_not_a_config(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("--config", tmp_path)


def test_config_without_a_file_is_refused() -> None:
    assert refusal("--seed", 1, "--config").startswith("--config: expected")


@pytest.mark.parametrize("text", ["", "# all defaults\n", "---\n"])
def test_an_empty_file_means_the_defaults(text: str, write: Any) -> None:
    assert load("--config", write(text)) == RunConfig()


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\x00", b"\xff\xfe\x00", "!!python/object:os.system {}"]
)
def test_an_unreadable_file_is_refused_by_name(text: str | bytes, write: Any) -> None:
    path = write(text)
    assert refusal("--config", path).startswith(f"{path} is not a readable YAML file")


@pytest.mark.parametrize("text", ["[1, 2]", "words", "3"])
def test_a_file_that_is_no_mapping_is_refused(text: str, write: Any) -> None:
    path = write(text)
    message = refusal("--config", path)
    assert message.startswith(f"{path}: given ")
    assert "a mapping" in message


def test_later_files_win_over_earlier_ones_key_by_key(write: Any) -> None:
    first = write("{seed: 1, train: {epochs: 3, clip_norm: 2.0}}", "first.yaml")
    second = write("{train: {epochs: 4}}", "second.yaml")
    config = load("--config", first, "--config", second)
    assert (config.seed, config.train.epochs, config.train.clip_norm) == (1, 4, 2.0)


# -- overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "mnist", "--train.epochs", "3", "--logging.wandb.mode=offline"],
        ["--train.epochs", "3", "--logging.wandb.mode=offline", "--config", "mnist"],
        ["--train.epochs=3", "--config=mnist", "--logging.wandb.mode", "offline"],
    ],
)
def test_an_override_wins_wherever_config_stands(argv: list[str]) -> None:
    config = load(*argv)
    assert (config.train.epochs, config.logging.wandb.mode) == (3, "offline")
    assert config.model == load("--config", "mnist").model


def test_the_last_of_two_overrides_wins() -> None:
    assert load("--seed", 1, "--seed", 2).seed == 2


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model.kwargs", '{"width": 48}'], {"width": 48}),
        (['--model.kwargs={"width": 48}'], {"width": 48}),
        (["--model.kwargs.width", "48"], {"hidden": [256, 128], "dropout": 0.2, "width": 48}),
        (["--model.kwargs.width=48"], {"hidden": [256, 128], "dropout": 0.2, "width": 48}),
        (["--model.kwargs.dropout", "0.5"], {"hidden": [256, 128], "dropout": 0.5}),
        (["--model.kwargs.hidden=[8, 4]"], {"hidden": [8, 4], "dropout": 0.2}),
        (["--model.kwargs", "{}"], {}),
        (["--model.kwargs", '{"inner": {"depth": 2}}'], {"inner": {"depth": 2}}),
    ],
)
def test_model_arguments_are_set_whole_or_one_by_one(
    argv: list[str], expected: dict[str, Any]
) -> None:
    """Law: `--model.kwargs MAPPING` replaces the recipe's, `--model.kwargs.KEY V` adds to it."""
    assert load(*argv, "--config", "mnist").model.kwargs == expected


@pytest.mark.parametrize(
    ("argv", "key", "expected"),
    [
        (["--optimizer.lr", "3e-4"], "optimizer.lr", 3e-4),
        (["--optimizer.lr", "1"], "optimizer.lr", 1.0),
        (["--optimizer.betas", "[0.8, 0.99]"], "optimizer.betas", (0.8, 0.99)),
        (["--train.max_steps", "null"], "train.max_steps", None),
        (["--train.max_steps", "5"], "train.max_steps", 5),
        (["--data.root", "null"], "data.root", None),
        (["--data.root", "2024"], "data.root", "2024"),
        (["--name", "2024"], "name", "2024"),
        (["--name", "1e3"], "name", "1e3"),
        (["--data.download", "false"], "data.download", False),
        (["--compile.enabled", "auto"], "compile.enabled", "auto"),
        (["--compile.enabled", "true"], "compile.enabled", True),
        (["--compile.enabled", "false"], "compile.enabled", False),
        (["--logging.wandb.tags", "[a, b]"], "logging.wandb.tags", ["a", "b"]),
        (["--schedule.warmup_steps=0"], "schedule.warmup_steps", 0),
    ],
)
def test_a_value_arrives_with_the_type_of_its_key(
    argv: list[str], key: str, expected: object
) -> None:
    found: Any = load(*argv)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == expected
    assert type(found) is type(expected)


def test_numbers_in_a_file_may_be_written_like_on_the_command_line(write: Any) -> None:
    """`3e-4` is text to YAML 1.1; the same run has the same digest either way."""
    from_file = load("--config", write("optimizer: {lr: 3e-4, eps: 1}"))
    assert from_file.optimizer.lr == 3e-4
    plain = write("seed: 0", "plain.yaml")
    from_flags = load("--config", plain, "--optimizer.lr=3e-4", "--optimizer.eps=1.0")
    assert digest(from_file) == digest(from_flags)


# -- refusals ------------------------------------------------------------------------------------

TYPOS = [
    ("trian", "train", None),
    ("train.epoch", "train.epochs", 3),
    ("optimizer.learning_rate", None, 0.1),
    ("logging.wandb.mod", "logging.wandb.mode", "offline"),
    ("logging.wandb.qqqqq.deep", None, 1),
    ("see", "seed", 3),
    ("epochs", "train.epochs", 3),
    ("qqqqq", None, 3),
]


def nested(key: str, value: object) -> str:
    for name in reversed(key.split(".")):
        value = {name: value}
    return yaml.safe_dump(value)


@pytest.mark.parametrize(("key", "closest", "value"), TYPOS)
def test_an_unknown_key_in_a_file_is_answered_with_the_closest_one(
    key: str, closest: str | None, value: object, write: Any
) -> None:
    path = write(nested(key, value))
    message = refusal("--config", path)
    assert "unknown config key" in message
    assert str(path) in message
    assert (f"Did you mean {closest!r}?" in message) == (closest is not None)


@pytest.mark.parametrize(("key", "closest", "value"), TYPOS)
@pytest.mark.parametrize("form", ["--{}={}", "--{} {}"])
def test_an_unknown_flag_is_answered_with_the_closest_one(
    form: str, key: str, closest: str | None, value: object
) -> None:
    message = refusal(*form.format(key, value).split())
    assert f"unknown config key {key!r}" in message
    assert (f"Did you mean {closest!r}?" in message) == (closest is not None)


@pytest.mark.parametrize("flag", ["--train=3", "--train", "--logging.wandb=x", "--model={}"])
def test_a_group_takes_no_value_of_its_own(flag: str) -> None:
    key = flag.partition("=")[0]
    assert refusal(flag).startswith(f"{key}: expected one of its keys")


@pytest.mark.parametrize("text", ["train: 3", "train: [1]", "logging: {wandb: on}", "train:"])
def test_a_group_in_a_file_is_a_mapping(text: str, write: Any) -> None:
    assert "expected a mapping of keys under it" in refusal("--config", write(text))


@pytest.mark.parametrize(
    "argv",
    [
        ["stray"],
        ["--train.epochs", "3", "stray"],
        ["--train.epochs=3", "stray"],
        ["--optimizer.betas", "0.5", "0.6"],
        ["-s"],
        ["--helpme"],
        ["--train.epo=3"],
        ["--seed"],
    ],
)
def test_whatever_is_no_option_is_refused(argv: list[str]) -> None:
    assert argv[-1].lstrip("-").partition("=")[0] in refusal(*argv)


def test_a_config_of_one_s_own_folder_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/own.yaml").touch()
    assert "Did you mean 'configs/own.yaml'?" in refusal("--config", "own")


@pytest.mark.parametrize("name", ["wine", "configs/wine.yaml", "my.yml"])
def test_a_config_without_its_option_is_told_of_it(name: str) -> None:
    assert f"Did you mean '--config {name}'?" in refusal(name, "--seed=1")


WRONG = [
    ("seed", "abc", "a whole number"),
    ("seed", 1.5, "a whole number"),
    ("seed", True, "a whole number"),
    ("optimizer.lr", "fast", "a number"),
    ("optimizer.lr", [1], "a number"),
    ("train.max_steps", "many", "a whole number or null"),
    ("train.clip_norm", True, "a number or null"),
    ("data.download", "maybe", "true or false"),
    ("data.download", 1, "true or false"),
    ("data.placement", "gpu", "one of auto, host, device"),
    ("precision.dtype", "fp8", "one of fp32, bf16, fp16"),
    ("compile.enabled", "maybe", "true or false or auto"),
    ("logging.wandb.mode", "on", "one of online, offline, disabled"),
    ("optimizer.betas", [0.5], ""),
    ("optimizer.betas", [0.5, 0.5, 0.5], ""),
    ("model.kwargs", 3, ""),
    ("logging.wandb.tags", "a", ""),
]


@pytest.mark.parametrize(("key", "given", "expected"), WRONG)
@pytest.mark.parametrize("source", ["file", "flag"])
def test_a_wrong_type_is_refused_with_key_given_and_expected(
    source: str, key: str, given: object, expected: str, write: Any
) -> None:
    argv = ("--config", write(nested(key, given))) if source == "file" else (f"--{key}={given}",)
    message = refusal(*argv)
    assert message.startswith(f"{key}: given ")
    assert str(given) in message
    assert f"expected {expected}" in message


@pytest.mark.parametrize("source", ["file", "flag"])
@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "optimizer.lr",
        "optimizer.betas",
        "data.verify",
        "precision.dtype",
        "model.kwargs",
        "logging.wandb.tags",
    ],
)
def test_null_is_refused_where_a_key_needs_a_value(key: str, source: str, write: Any) -> None:
    """Law: null means the same from a file and from a flag."""
    argv = ("--config", write(nested(key, None))) if source == "file" else (f"--{key}=null",)
    assert refusal(*argv).startswith(f"{key}: ")


@pytest.mark.parametrize("key", ["name", "data.dataset", "model.name", "logging.wandb.project"])
def test_a_null_name_in_a_file_is_refused(key: str, write: Any) -> None:
    assert refusal("--config", write(nested(key, None))).startswith(f"{key}: ")


@pytest.mark.parametrize("source", ["file", "flag"])
@pytest.mark.parametrize(
    ("key", "given"),
    [("train.epochs", 0), ("data.workers", -1), ("optimizer.lr", -0.5), ("checkpoint.keep", 1)],
)
def test_a_range_check_speaks_the_same_from_a_file_and_from_a_flag(
    source: str, key: str, given: object, write: Any
) -> None:
    argv = ("--config", write(nested(key, given))) if source == "file" else (f"--{key}={given}",)
    assert refusal(*argv).startswith(f"{key}: given {given!r}, expected ")


def test_checks_across_groups_are_made_on_the_merged_config(write: Any) -> None:
    path = write("{parallel: {reduction: exact}, train: {global_batch_size: 12}}")
    assert refusal("--config", path).startswith("train.global_batch_size: given 12")
    assert load("--config", path, "--parallel.shards=4").parallel.shards == 4


# -- output --------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--seed=7", "--optimizer.lr=3e-4", "--config=idx"]])
def test_the_printed_config_is_the_same_run(
    argv: list[str], write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: load(print(config)) == config, so a printed file can be run again."""
    with pytest.raises(SystemExit) as ended:
        load("--print_config", *argv)
    assert ended.value.code == 0
    assert load("--config", write(capsys.readouterr().out)) == load(*argv)


@pytest.mark.process
def test_loading_a_config_does_not_load_torch() -> None:
    """A mistyped key is answered at once: nothing heavy is imported before it is found."""
    code = (
        "import sys; from configs.load import load_config; "
        "load_config([], prog='p', description='d'); sys.exit('torch' in sys.modules)"
    )
    assert run_code(code).status == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"width": 7}),
        (["--model.name=mlp"], {"width": 7}),
        (["--model.name", "convnet"], {}),
        (["--model.kwargs.depth=2", "--model.name=convnet"], {"depth": 2}),
        (["--model.name=convnet", "--model.kwargs", '{"depth": 3}'], {"depth": 3}),
        (["--model.name=convnet", "--model.name=mlp"], {"width": 7}),
    ],
)
def test_arguments_of_another_model_go_with_its_name(
    options: list[str], expected: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: a recipe's arguments are those of the model that it names, and that is said."""
    file = tmp_path / "run.yaml"
    file.write_text("model: {name: mlp, kwargs: {width: 7}}\nseed: 1\n")
    with caplog.at_level("INFO", logger="convoy"):
        config = load_config([*options, "--config", str(file)], prog="", description="")
    assert config.model.kwargs == expected
    said = expected in ({}, {"depth": 2})  # kwargs given as a whole replace them anyway
    assert ("model.kwargs {'width': 7} are not those of convnet" in caplog.text) == said


def test_arguments_of_another_optimizer_in_a_file_before_are_dropped_too(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("optimizer: {name: rmsprop, kwargs: {alpha: 0.9}}\n")
    second.write_text("optimizer: {name: nadam, kwargs: {momentum_decay: 0.01}}\n")
    files = [f"--config={first}", f"--config={second}"]
    config = load_config(files, prog="", description="")
    assert config.optimizer.kwargs == {"momentum_decay": 0.01}
