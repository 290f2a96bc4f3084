"""Configuration: defaults, reading, and every message of a wrong one."""

import dataclasses
import json
import math

import numpy as np
import pytest

from exporter.config import (
    ConfigError,
    ExportConfig,
    NtkConfig,
    VerifyConfig,
    check_axes,
    check_together,
    load_config,
)
from exporter.errors import ExportError

CONTRACT = """
ntk:
  implementation: auto        # auto | layerwise | structured_derivatives | ntk_vector_products | jacobian_contraction
  trace_axes: [-1]
  diagonal_axes: []
  vmap_axes: auto
  trainable: "*"
  output: null
  precision: float32
export:
  platforms: [cpu, cuda]
  signatures: [ntk, ntk_symmetric, ntk_diagonal, ntk_with_params, ntk_features, forward]
  features: {dimensions: 4096, seed: 0}
  input_shapes: null
  memory_budget: 1GiB
  warmup: true
  verify: {examples: 8, rtol: 1.0e-4}
"""


def problems_of(text, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(text, overrides)
    return list(caught.value.problems)


class TestDefaults:
    def test_are_those_of_the_contract(self):
        assert load_config(CONTRACT) == (NtkConfig(), ExportConfig())

    @pytest.mark.parametrize(
        "text", [None, "", "\n", "# nothing\n", "---\n", "{}", "ntk:\nexport:\n", "export: {verify: }"]
    )
    def test_stand_for_what_is_missing(self, text):
        assert load_config(text) == (NtkConfig(), ExportConfig())

    def test_have_the_types_of_the_fields(self):
        assert dataclasses.asdict(NtkConfig()) == {
            "implementation": "auto",
            "trace_axes": (-1,),
            "diagonal_axes": (),
            "vmap_axes": "auto",
            "trainable": ("*",),
            "output": None,
            "precision": "float32",
            "trace_samples": None,
            "trace_seed": 0,
        }
        assert ExportConfig().memory_budget == 2**30
        assert ExportConfig().verify == VerifyConfig(examples=8, rtol=1e-4, seconds=120.0)

    def test_configurations_are_frozen_and_hashable(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            NtkConfig().precision = "float64"  # type: ignore[misc]
        assert len({NtkConfig(), NtkConfig(trace_axes=[-1])}) == 1
        assert len({ExportConfig(), ExportConfig(platforms=["cpu", "cuda"])}) == 1
        assert len({ExportConfig(input_shapes={"x": 3}), ExportConfig(input_shapes={"x": [3]})}) == 1


class TestValues:
    @pytest.mark.parametrize(
        ("text", "shapes"),
        [
            ("null", None),
            ("[128]", (128,)),
            ("128", (128,)),
            ("[64, 48]", (64, 48)),
            ("{tokens: [128], image: [64, 48]}", {"tokens": (128,), "image": (64, 48)}),
            ("{tokens: 128}", {"tokens": (128,)}),
        ],
    )
    def test_input_shapes(self, text, shapes):
        assert load_config(f"export: {{input_shapes: {text}}}")[1].input_shapes == shapes
        assert load_config(None, [f"export.input_shapes={text}"])[1].input_shapes == shapes

    def test_sequences_become_tuples_and_single_values_too(self):
        config = NtkConfig(trace_axes=1, diagonal_axes=[2], trainable=["dense/*", "!*/bias"])
        assert (config.trace_axes, config.diagonal_axes) == ((1,), (2,))
        assert config.trainable == ("dense/*", "!*/bias")
        assert ExportConfig(platforms="cpu").platforms == ("cpu",)

    def test_numpy_integers_are_integers(self):
        config = NtkConfig(trace_axes=(np.int64(-1),), vmap_axes=np.int32(0), output=np.int64(1))
        assert json.dumps(config.to_dict())
        assert (config.vmap_axes, config.output) == (0, 1)

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1", 1),
            ("123456", 123456),
            ("1GiB", 2**30),
            ("512MiB", 2**29),
            ("64KiB", 2**16),
            ("1TiB", 2**40),
            ("2GB", 2 * 10**9),
            ("'3 MB'", 3 * 10**6),
            ("1.5GiB", 3 * 2**29),
            ("100kB", 10**5),
            ("10b", 10),
        ],
    )
    def test_memory_budget(self, text, size):
        assert load_config(f"export: {{memory_budget: {text}}}")[1].memory_budget == size

    def test_memory_budget_of_a_large_number_is_exact(self):
        assert ExportConfig(memory_budget="9007199254740993B").memory_budget == 9007199254740993

    @pytest.mark.parametrize(
        "text", ["0", "-1", "0GiB", "1.5", "lots", "1 Gi", "-2GB", "true", "null", "[1]", "1e9", "''"]
    )
    def test_wrong_memory_budget(self, text):
        (problem,) = problems_of(f"export: {{memory_budget: {text}}}")
        assert problem.startswith("export.memory_budget: expected bytes as a whole number, or a text such as '512MiB'")

    @pytest.mark.parametrize("text", ["1.0e-4", "1e-4", "1E-4", "0.0001", "1.e-4", ".1e-3", "+1e-4"])
    def test_numbers_may_be_written_as_in_json_or_yaml(self, text):
        assert load_config(f"export: {{verify: {{rtol: {text}}}}}")[1].verify.rtol == 1e-4

    @pytest.mark.parametrize("rtol", [0, -1e-4, math.nan, math.inf, "1e-4", True, None])
    def test_rtol_is_a_finite_number_above_zero(self, rtol):
        with pytest.raises(ConfigError, match=r"export\.verify\.rtol: expected a number above 0, got"):
            VerifyConfig(rtol=rtol)

    @pytest.mark.parametrize("examples", [0, -1, 2.5, True, "8"])
    def test_examples_is_a_whole_number_from_one(self, examples):
        with pytest.raises(ConfigError, match=r"export\.verify\.examples: expected a whole number, 1 or more, got"):
            VerifyConfig(examples=examples)

    def test_verify_may_be_a_mapping(self):
        assert ExportConfig(verify={"examples": 3}).verify == VerifyConfig(examples=3)

    @pytest.mark.parametrize("text", ["on", "yes", "true", "True"])
    def test_booleans_of_yaml(self, text):
        assert load_config(f"export: {{warmup: {text}}}")[1].warmup is True

    @pytest.mark.parametrize("text", ["1", "0", "null", "'true'", "[true]"])
    def test_nothing_else_is_a_boolean(self, text):
        (problem,) = problems_of(f"export: {{warmup: {text}}}")
        assert problem.startswith("export.warmup: expected true or false, got")

    def test_serving_default_is_ntk_or_else_the_first_signature(self):
        assert ExportConfig(signatures=["forward", "ntk"]).serving_default == "ntk"
        assert ExportConfig(signatures=["ntk_diagonal", "forward"]).serving_default == "ntk_diagonal"

    @pytest.mark.parametrize("vmap_axes", ["auto", 0, None])
    def test_vmap_axes(self, vmap_axes):
        config = load_config(json.dumps({"ntk": {"vmap_axes": vmap_axes}}))[0]
        assert config.vmap_axes == vmap_axes


class TestMessages:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (
                "ntk: {implementation: layer-wise}",
                "ntk.implementation: expected one of auto, layerwise, structured_derivatives, ntk_vector_products, "
                "jacobian_contraction, got 'layer-wise'; did you mean 'layerwise'?",
            ),
            (
                "ntk: {implementation: 3}",
                "ntk.implementation: expected one of auto, layerwise, structured_derivatives, ntk_vector_products, "
                "jacobian_contraction, got 3; did you mean 'structured_derivatives'?",
            ),
            (
                "ntk: {precision: Float32}",
                "ntk.precision: expected one of float32, tensorfloat32, bfloat16, float64, model, got 'Float32'; "
                "did you mean 'float32'?",
            ),
            (
                "ntk: {precision: tf32}",
                "ntk.precision: expected one of float32, tensorfloat32, bfloat16, float64, model, got 'tf32'; "
                "did you mean 'tensorfloat32'?",
            ),
            (
                "ntk: {precision: [float32]}",
                "ntk.precision: expected one of float32, tensorfloat32, bfloat16, float64, model, got ['float32']; "
                "did you mean 'float32'?",
            ),
            ("ntk: {vmap_axes: 1}", "ntk.vmap_axes: expected one of auto, 0, null, got 1"),
            (
                "ntk: {vmap_axes: None}",
                "ntk.vmap_axes: expected one of auto, 0, null, got 'None'; did you mean 'null'?",
            ),
            ("ntk: {trace_axes: '-1'}", "ntk.trace_axes: expected a list of whole numbers, got '-1'"),
            ("ntk: {trace_axes: [1.0]}", "ntk.trace_axes: expected a list of whole numbers, got [1.0]"),
            ("ntk: {trace_axes: [true]}", "ntk.trace_axes: expected a list of whole numbers, got [True]"),
            ("ntk: {trace_axes: null}", "ntk.trace_axes: expected a list of whole numbers, got None"),
            ("ntk: {diagonal_axes: [1, 1]}", "ntk.diagonal_axes: expected each entry once, got 1 more than once"),
            (
                "ntk: {diagonal_axes: [-1]}",
                "ntk.trace_axes: expected no axis that is in diagonal_axes too, got -1 in both; take it off one",
            ),
            ("ntk: {trainable: []}", "ntk.trainable: expected a list with at least one entry, got []"),
            ("ntk: {trainable: 3}", "ntk.trainable: expected a list with at least one entry, got 3"),
            ("ntk: {trainable: [3]}", "ntk.trainable: expected a list of texts, got 3"),
            ("ntk: {trainable: ['']}", "ntk.trainable: expected a list of texts, got ''"),
            ("ntk: {trainable: ['a*', '!']}", "ntk.trainable: expected a pattern after '!', got '!'"),
            ("ntk: {output: -1}", "ntk.output: expected a name, an index from 0, or null, got -1"),
            ("ntk: {output: 1.5}", "ntk.output: expected a name, an index from 0, or null, got 1.5"),
            (
                "ntk: {output: on}",
                "ntk.output: expected a name, an index from 0, or null, got True; YAML reads on, off, yes and no as "
                "booleans, quote the word if it is a name",
            ),
            (
                "export: {platforms: [cpu, gpu]}",
                "export.platforms: expected any of cpu, cuda, rocm, tpu, got 'gpu'; did you mean 'cuda' or 'rocm'?",
            ),
            ("export: {platforms: []}", "export.platforms: expected a list with at least one entry, got []"),
            ("export: {platforms: [cpu, cpu]}", "export.platforms: expected each entry once, got cpu more than once"),
            (
                "export: {signatures: [ntk, ntk_symetric]}",
                "export.signatures: expected any of ntk, ntk_symmetric, ntk_diagonal, ntk_with_params, ntk_features, "
                "forward, got 'ntk_symetric'; did you mean 'ntk_symmetric'?",
            ),
            ("export: {signatures: []}", "export.signatures: expected a list with at least one entry, got []"),
            (
                "export: {signatures: [forward]}",
                "export.signatures: expected at least one kernel (ntk, ntk_symmetric, ntk_diagonal, ntk_with_params, "
                "ntk_features), got ['forward']",
            ),
            ("export: {input_shapes: []}", "export.input_shapes: expected a list of sizes, at least one, got []"),
            ("export: {input_shapes: '32'}", "export.input_shapes: expected a list of sizes, at least one, got '32'"),
            ("export: {input_shapes: true}", "export.input_shapes: expected a list of sizes, at least one, got True"),
            *[
                (
                    f"export: {{input_shapes: [8, {size}]}}",
                    "export.input_shapes: expected sizes that are whole numbers from 1 to 2147483647, got "
                    f"{'None' if size == 'null' else size.capitalize()}",
                )
                for size in ("0", "-1", "1.5", "true", "null", "2147483648")
            ],
            (
                "export: {input_shapes: {tokens: [8], image: [0, 8]}}",
                "export.input_shapes.image: expected sizes that are whole numbers from 1 to 2147483647, got 0",
            ),
            *[
                (
                    f"export: {{input_shapes: {value}}}",
                    "export.input_shapes: expected a list of sizes, or a mapping from names of inputs to lists of "
                    f"sizes, got {value}",
                )
                for value in ("{}", "{1: [2]}")
            ],
            (
                "export: {features: {dimensions: 0}}",
                "export.features.dimensions: expected a whole number, 1 or more, got 0",
            ),
            (
                "export: {features: {dimensions: -4096}}",
                "export.features.dimensions: expected a whole number, 1 or more, got -4096",
            ),
            (
                "export: {features: {dimensions: 0.5}}",
                "export.features.dimensions: expected a whole number, 1 or more, got 0.5",
            ),
            (
                "export: {features: {dimensions: 10000000}}",
                "export.features.dimensions: expected at most 1048576, got 10000000",
            ),
            ("export: {features: {seed: -1}}", "export.features.seed: expected a whole number, 0 or more, got -1"),
            (
                "export: {features: {dimension: 8}}",
                "export.features: unknown key 'dimension'; did you mean 'dimensions'?",
            ),
            ("export: {verify: false}", "export.verify: expected a mapping, got False"),
            (
                "export: {verify: {exmples: 3}}",
                "export.verify: unknown key 'exmples'; did you mean 'examples'?",
            ),
            ("ntk: [1]", "ntk: expected a mapping, got [1]"),
            ("ntk: {trace_axis: []}", "ntk: unknown key 'trace_axis'; did you mean 'trace_axes'?"),
            ("ntk: {Precision: float32}", "ntk: unknown key 'Precision'; did you mean 'precision'?"),
            ("ntk: {colour: red}", "ntk: unknown key 'colour'"),
            ("ntk: {on: 1}", "ntk: unknown key True"),
            ("nkt: {}", "unknown key 'nkt'; did you mean 'ntk'?"),
            ("trace_axes: []", "unknown key 'trace_axes'; did you mean 'ntk.trace_axes'?"),
            ("1: 2", "unknown key 1"),
            ("- ntk\n- export\n", "expected a mapping with the keys ntk and export, got ['ntk', 'export']"),
        ],
    )
    def test_of_one_problem(self, text, problem):
        assert problems_of(text) == [problem]

    @pytest.mark.parametrize("key", ["trace_axes", "diagonal_axes"])
    def test_of_the_batch_axis_name_the_cure(self, key):
        (problem,) = problems_of(f"ntk: {{{key}: [0]}}")
        assert problem.startswith(f"ntk.{key}: expected an axis of the output other than its batch axis")
        assert "use the ntk_diagonal signature" in problem
        assert problem.endswith("got 0")

    def test_all_problems_come_together(self):
        text = """
            ntk: {implementation: fast, trace_axes: [0, 0], precison: float32}
            export: {platforms: [gpu], memory_budget: none, warmup: 1, verify: {examples: 0, rtol: -1, seed: 1}}
            extra: 1
        """
        paths = [problem.split(": ")[0] for problem in problems_of(text, ["ntk.output=false", "export.speed=3"])]
        assert paths == [
            "override 'export.speed=3'",
            "unknown key 'extra'",
            "ntk",
            "ntk.implementation",
            "ntk.trace_axes",
            "ntk.trace_axes",
            "ntk.output",
            "export.platforms",
            "export.memory_budget",
            "export.warmup",
            "export.verify",
            "export.verify.examples",
            "export.verify.rtol",
        ]

    def test_of_one_problem_is_one_line_and_of_several_a_list(self):
        with pytest.raises(ConfigError) as caught:
            load_config("ntk: {output: -1}")
        assert str(caught.value) == ("configuration: ntk.output: expected a name, an index from 0, or null, got -1")
        with pytest.raises(ConfigError) as caught:
            load_config("ntk: {output: -1}\nexport: {warmup: 3}")
        assert str(caught.value).splitlines() == [
            "configuration: 2 problems",
            "  ntk.output: expected a name, an index from 0, or null, got -1",
            "  export.warmup: expected true or false, got 3",
        ]

    def test_are_export_errors_and_value_errors(self):
        with pytest.raises(ExportError):
            NtkConfig(precision="half")
        with pytest.raises(ValueError, match="precision"):
            NtkConfig(precision="half")

    def test_of_float64_on_a_tpu(self):
        text = "ntk: {precision: float64}\nexport: {platforms: [cpu, tpu]}"
        (problem,) = problems_of(text)
        assert problem.startswith("ntk.precision: tpu has no float64, got precision 'float64' with export.platforms")
        with pytest.raises(ConfigError, match="tpu has no float64"):
            check_together(NtkConfig(precision="float64"), ExportConfig(platforms=["tpu"]))
        check_together(NtkConfig(precision="float64"), ExportConfig())
        check_together(NtkConfig(), ExportConfig(platforms=["tpu"]))


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("ntk: [1, 2\nexport: 3\n", "line 2, column 7"),
            ("ntk:\n  output: a: b\n", "line 2, column 12"),
            ("ntk:\n\toutput: a\n", "line 2, column 1"),
            ("{ntk: {output: 'a}\n", "line 2, column 1"),
            ("--- {}\n--- {}\n", "line 2, column 1"),
            ("ntk: !!python/object/apply:os.system [id]\n", "line 1, column 6"),
            ("ntk: {? [a] : b}", "line 1"),
        ],
    )
    def test_what_is_no_yaml_is_named_with_its_place(self, text, place):
        (problem,) = problems_of(text)
        assert problem.startswith(place)
        assert "not YAML that can be used here: " in problem

    def test_a_character_that_yaml_forbids(self):
        (problem,) = problems_of("ntk: {output: '\x00'}")
        assert "not YAML: unacceptable character" in problem

    @pytest.mark.parametrize("line", ["trainable: *", "trainable: !bias", "trainable: [*]", "trainable: [a, !b]"])
    def test_unquoted_patterns_get_a_hint(self, line):
        (problem,) = problems_of(f"ntk:\n  {line}\n")
        assert problem.startswith("line ")
        assert problem.endswith("; a pattern that begins with '*' or '!' must be quoted")

    def test_duplicate_keys_are_all_reported_with_their_lines(self):
        text = "ntk:\n  output: a\n  output: b\nexport: {warmup: true, warmup: true}\nntk: {}\n"
        assert sorted(problems_of(text)) == [
            "line 3: key 'output' stands twice, first on line 2",
            "line 4: key 'warmup' stands twice, first on line 4",
            "line 5: key 'ntk' stands twice, first on line 1",
        ]

    def test_anchors_and_merge_keys_work(self):
        text = "ntk: {output: &name logits}\nexport: {verify: {<<: {examples: 2}, examples: 3}}\n"
        ntk, export = load_config(text)
        assert ntk.output == "logits"
        assert export.verify.examples == 3


class TestSource:
    def test_file(self, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text("ntk: {output: 1}", encoding="utf-8-sig")
        assert load_config(path)[0].output == 1
        assert load_config(str(path))[0].output == 1

    def test_json_file(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"export": {"verify": {"rtol": 1e-7}}}))
        assert load_config(path)[1].verify.rtol == 1e-7

    def test_error_names_the_file(self, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text("ntk: {output: -1}")
        with pytest.raises(ConfigError, match=r"^configuration .*config\.yaml: ntk\.output: "):
            load_config(path)

    def test_missing_file_names_the_nearest(self, tmp_path):
        (tmp_path / "config.yaml").touch()
        with pytest.raises(
            ConfigError, match=r"cannot be read: No such file or directory; did you mean 'config\.yaml'"
        ):
            load_config(tmp_path / "confg.yaml")
        with pytest.raises(ConfigError, match="cannot be read: No such file"):
            load_config(str(tmp_path / "none" / "config.yaml"))

    def test_directory(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            load_config(tmp_path)

    def test_binary_file(self, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_bytes(b"ntk: \xff\xfe\x00")
        with pytest.raises(ConfigError, match="not YAML: byte 5 is not UTF-8 text"):
            load_config(path)


class TestOverrides:
    def test_replace_values_in_order(self):
        ntk, export = load_config(
            "ntk: {trace_axes: [-1], output: a}",
            [
                "ntk.trace_axes=[]",
                "ntk.output=b",
                "ntk.output=2",
                "export.verify.rtol=1e-3",
                "export.memory_budget=2GB",
                "ntk.vmap_axes=null",
            ],
        )
        assert (ntk.trace_axes, ntk.output, ntk.vmap_axes) == ((), 2, None)
        assert (export.verify, export.memory_budget) == (VerifyConfig(rtol=1e-3), 2 * 10**9)

    def test_work_without_a_file_and_in_empty_sections(self):
        assert load_config(None, ["export.verify.examples=2"])[1].verify.examples == 2
        assert load_config("export: {verify: }", ["export.verify.examples=2"])[1].verify.examples == 2

    def test_replace_a_whole_section(self):
        assert load_config("ntk: {output: 1}", ["ntk={precision: float64}"])[0] == NtkConfig(precision="float64")

    def test_take_patterns_without_quotes(self):
        assert load_config(None, ["ntk.trainable=*/kernel"])[0].trainable == ("*/kernel",)
        assert load_config(None, ["ntk.trainable=!*bias"])[0].trainable == ("!*bias",)
        assert load_config(None, ["ntk.trainable=['*', '!*bias']"])[0].trainable == ("*", "!*bias")

    def test_value_may_hold_an_equals_sign(self):
        assert load_config(None, ["ntk.output=a=b"])[0].output == "a=b"

    @pytest.mark.parametrize(
        ("override", "problem"),
        [
            ("ntk.output", "expected KEY=VALUE with a dotted key, such as ntk.trace_axes=[]"),
            ("=1", "expected KEY=VALUE with a dotted key, such as ntk.trace_axes=[]"),
            ("ntk..output=1", "expected KEY=VALUE with a dotted key, such as ntk.trace_axes=[]"),
            ("ntk.ouput=1", "unknown key 'ntk.ouput'; did you mean 'ntk.output'?"),
            ("rtol=1", "unknown key 'rtol'; did you mean 'export.verify.rtol'?"),
            ("ntk.output.name=1", "unknown key 'ntk.output.name'; did you mean 'ntk.output'?"),
        ],
    )
    def test_wrong(self, override, problem):
        assert problems_of(None, [override]) == [f"override {override!r}: {problem}"]

    def test_value_that_is_no_yaml(self):
        (problem,) = problems_of(None, ["ntk.trace_axes=[1"])
        assert problem.startswith("override 'ntk.trace_axes=[1': line 1, column 3: not YAML that can be used here: ")

    def test_into_a_section_that_is_no_mapping(self):
        assert problems_of("ntk: 3", ["ntk.output=1"]) == ["ntk: expected a mapping, got 3"]


class TestToDict:
    @pytest.mark.parametrize(
        ("ntk", "export"),
        [
            (NtkConfig(), ExportConfig()),
            (
                NtkConfig("layerwise", (1, -2), (-1,), None, ("a/*", "!*b"), "logits", "float64"),
                ExportConfig(("cpu", "rocm"), ("ntk_diagonal",), 12345, False, VerifyConfig(3, 1e-7)),
            ),
            (NtkConfig(vmap_axes=0, output=2, trace_axes=()), ExportConfig(platforms="tpu", memory_budget="1.5GiB")),
            (NtkConfig(), ExportConfig(input_shapes=(64, 48), features={"dimensions": 64, "seed": 7})),
            (NtkConfig(), ExportConfig(input_shapes={"tokens": (128,), "image": [64, 48]})),
        ],
    )
    def test_round_trip_through_json(self, ntk, export):
        text = json.dumps({"ntk": ntk.to_dict(), "export": export.to_dict()})
        assert load_config(text) == (ntk, export)


class TestCheckAxes:
    def test_counts_from_zero(self):
        config = NtkConfig(trace_axes=(-1, 1), diagonal_axes=(-2,))
        assert check_axes(config, output_rank=4) == ((3, 1), (2,))
        assert check_axes(NtkConfig(), output_rank=2) == ((1,), ())
        assert check_axes(NtkConfig(trace_axes=()), output_rank=1) == ((), ())

    def test_out_of_range(self):
        with pytest.raises(ConfigError) as caught:
            check_axes(NtkConfig(trace_axes=(2,), diagonal_axes=(-4, 1)), output_rank=2)
        assert caught.value.problems == (
            "ntk.trace_axes: expected an axis from -2 to 1 (the output has 2 axes), got 2",
            "ntk.diagonal_axes: expected an axis from -2 to 1 (the output has 2 axes), got -4",
        )

    def test_overlap_and_duplicates_show_once_the_rank_is_known(self):
        with pytest.raises(ConfigError) as caught:
            check_axes(NtkConfig(trace_axes=(-1, 2), diagonal_axes=(1, -2)), output_rank=3)
        assert caught.value.problems == (
            "ntk.trace_axes: expected each axis once, got [-1, 2], in which axis 2 stands twice",
            "ntk.diagonal_axes: expected each axis once, got [1, -2], in which axis 1 stands twice",
        )
        with pytest.raises(ConfigError, match="expected no axis that is in diagonal_axes too, got 2 in both"):
            check_axes(NtkConfig(trace_axes=(-1,), diagonal_axes=(2,)), output_rank=3)

    def test_batch_axis(self):
        with pytest.raises(ConfigError, match=r"use the ntk_diagonal signature.*got -2$"):
            check_axes(NtkConfig(trace_axes=(-2,)), output_rank=2)

    def test_default_for_an_output_of_one_number_per_example(self):
        with pytest.raises(ConfigError, match=r"got -1; write trace_axes: \[\] for none"):
            check_axes(NtkConfig(), output_rank=1)
