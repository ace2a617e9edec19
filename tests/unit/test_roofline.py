"""The arithmetic of the roofline, against the figures worked out by hand in the design."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.errors import (
    InsufficientMemoryError,
    InvalidArgumentError,
    ModelFilesError,
    UnsupportedModelError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import INT4, INT8, DType, Encoding, KvFormat, Precision
from stagecoach.model_files import ModelConfig, open_model
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.roofline.capability import Capability
from stagecoach.roofline.devices import GPUS, gpu_named
from stagecoach.roofline.kv_memory import kv_memory_bytes, num_kv_blocks
from stagecoach.roofline.model_shape import ModelShape, device_precision
from stagecoach.roofline.networks import NETWORKS, network_named
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.step_time import (
    attention_work,
    matrices_work,
    num_host_launches,
    num_launches,
    step_time,
    unpacking_work,
)
from stagecoach.roofline.work import Work
from tests.layer_ranges import split_evenly
from tests.tiny_models import FAMILIES as TINY
from tests.tiny_models import tiny_model

RTX_3060 = gpu_named("rtx-3060-12gb")


def config_of(name: str) -> ModelConfig:
    return open_model(f"shape:{name}").config


def reading_s(stage: StageCost, work: Work) -> float:
    """The least time: all that has to be moved, at the bandwidth of the data sheet."""
    return stage.moved_bytes(work) / RTX_3060.bandwidth_bytes_per_s


def create_stages(name: str, num_stages: int) -> list[StageCost]:
    shape = ModelShape.of(config_of(name))
    ranges = split_evenly(shape.num_layers, num_stages)
    return [StageCost(model=shape, layers=layers) for layers in ranges]


LLAMA_13B = ModelShape.of(config_of("llama-2-13b"))


EXPERTS = [name for name, make in TINY.items() if FAMILIES[make().model_type].experts]


class TestModelShape:
    def test_llama_2_13b_has_the_published_sizes(self) -> None:
        assert LLAMA_13B.num_parameters == 13_015_864_320
        assert LLAMA_13B.weight_bytes == 26_031_728_640
        assert LLAMA_13B.kv_bytes_per_token == 819_200
        assert LLAMA_13B.hidden_bytes_per_token == 10_240

    @pytest.mark.parametrize(
        ("name", "billions"),
        [
            ("llama-1b", 1.10),
            ("llama-2-7b", 6.74),
            ("llama-2-70b", 68.98),
            ("llama-3.1-8b", 8.03),
            ("llama-3.1-70b", 70.55),
            ("mistral-7b", 7.25),
            ("qwen2.5-7b", 7.62),
            ("qwen2.5-14b", 14.77),
            ("qwen2.5-32b", 32.76),
            ("mixtral-8x7b", 46.70),
            ("qwen3-30b-a3b", 30.53),
            ("deepseek-v2-lite", 15.71),
            ("glm-4.7-flash", 29.94),
            ("gpt-oss-20b", 20.91),
            ("gpt-oss-120b", 116.83),
        ],
    )
    def test_shapes_have_as_many_parameters_as_their_models(
        self, name: str, billions: float
    ) -> None:
        shape = ModelShape.of(config_of(name))
        assert shape.num_parameters / 1e9 == pytest.approx(billions, rel=0.002)

    @pytest.mark.parametrize(
        "case", ["llama", "llama-gqa-tied", "starcoder2", "olmo2", "gemma2", *EXPERTS]
    )
    def test_parameters_are_those_of_the_model_in_its_files(
        self, case: str, tmp_path: Path
    ) -> None:
        files = open_model(str(tiny_model(case, tmp_path, hidden_size=256, intermediate_size=1024)))
        with files.open_tensors(files.tensor_names) as reader:
            total = sum(reader.read(name).size for name in files.tensor_names)
        shape = ModelShape.of(files.config)
        assert shape.num_parameters == pytest.approx(total, rel=0.01)

    def test_a_token_is_multiplied_by_the_experts_that_it_chooses(self) -> None:
        shape = ModelShape.of(config_of("qwen3-30b-a3b"))
        stage = StageCost(model=shape, layers=LayerRange(0, 48))
        ends = 2 * 151936 * 2048
        assert (stage.matrices.of_share(8 / 128).parameters + ends) / 1e9 == pytest.approx(
            3.34, rel=0.01
        )

    def test_experts_are_read_that_some_token_is_expected_to_choose(self) -> None:
        shape = ModelShape.of(config_of("qwen3-30b-a3b"))
        stage = StageCost(model=shape, layers=LayerRange(8, 16))
        generator = random.Random(1)
        for num_tokens in (1, 8, 64):
            num_touched = [
                len({e for _ in range(num_tokens) for e in generator.sample(range(128), 8)})
                for _ in range(400)
            ]
            share = sum(num_touched) / len(num_touched) / 128
            assert shape.touched_share(num_tokens) == pytest.approx(share, rel=0.02)
        experts = 8 * 128 * 3 * 768 * 2048 * 2
        left = stage.matrix_bytes - stage.touched(8).num_bytes
        assert left == pytest.approx(experts * (1 - shape.touched_share(8)), rel=1e-6)

    def test_stages_hold_the_whole_model_between_them(self) -> None:
        stages = create_stages("llama-2-13b", 3)
        assert sum(stage.weight_bytes for stage in stages) == LLAMA_13B.weight_bytes
        assert sum(stage.kv_bytes_per_token for stage in stages) == LLAMA_13B.kv_bytes_per_token

    def test_a_tied_head_counts_once_where_the_embedding_is_and_again_elsewhere(
        self, tmp_path: Path
    ) -> None:
        shape = ModelShape.of(open_model(str(tiny_model("llama-gqa-tied", tmp_path))).config)
        (whole,) = (StageCost(model=shape, layers=LayerRange(0, shape.num_layers)),)
        halves = [StageCost(model=shape, layers=LayerRange(*ends)) for ends in ((0, 3), (3, 6))]
        assert whole.weight_bytes == shape.weight_bytes
        assert sum(half.weight_bytes for half in halves) == (
            shape.weight_bytes + shape.embedding_bytes
        )

    def test_a_model_whose_cost_is_not_known_is_refused_by_name(self) -> None:
        raw = dict(config_of("llama-1b").raw)
        with pytest.raises(UnsupportedModelError, match="intermediate_size"):
            ModelShape.of(parse_config({**raw, "intermediate_size": None}))
        with pytest.raises(InvalidArgumentError, match="float32"):
            device_precision("float32")

    def test_each_number_takes_the_bytes_of_its_own_format(self) -> None:
        config = config_of("llama-2-13b")
        q4_0 = Encoding("q4_0", 32, 18)
        mixed = Precision(
            weights=q4_0,
            compute=DType.FLOAT16,
            kv=KvFormat.FLOAT32,
            wire=Encoding("fp8_e4m3, a scale a row", config.hidden_size, config.hidden_size + 4),
        )
        shape = ModelShape.of(config, mixed)
        norms = (2 * 40 + 1) * 5120
        matrices = LLAMA_13B.num_parameters - norms
        assert shape.num_parameters == LLAMA_13B.num_parameters
        assert shape.weight_bytes == matrices // 32 * 18 + norms * 2
        assert shape.kv_bytes_per_token == 2 * LLAMA_13B.kv_bytes_per_token
        assert shape.hidden_bytes_per_token == 5120 + 4
        stage = StageCost(model=shape, layers=LayerRange(0, 40))
        assert stage.weight_bytes == shape.weight_bytes
        one_token = shape.weight_bytes - shape.embedding_bytes + 5120 // 32 * 18
        assert stage.moved_bytes(Work.decode(1, 0)) == one_token + shape.kv_bytes_per_token

    @pytest.mark.parametrize(("encoding", "group_bytes"), [(INT4, 20), (INT8, 36)])
    def test_few_bits_hold_the_embedding_in_8_and_the_head_in_16(
        self, encoding: Encoding, group_bytes: int
    ) -> None:
        few = Precision.uniform(DType.FLOAT16)._replace(weights=encoding)
        shape = ModelShape.of(config_of("llama-2-13b"), few)
        ends = 32000 * 5120
        norms = (2 * 40 + 1) * 5120
        in_layers = LLAMA_13B.num_parameters - 2 * ends - norms
        expected = in_layers // 32 * group_bytes + ends // 32 * 36 + 2 * (ends + norms)
        assert shape.weight_bytes == expected
        stage = StageCost(model=shape, layers=LayerRange(0, 40))
        assert stage.weight_bytes == expected
        assert shape.bits_per_weight == pytest.approx(8 * expected / 13_015_864_320)

    def test_few_bits_share_no_embedding_with_the_head(self, tmp_path: Path) -> None:
        config = open_model(str(tiny_model("llama-gqa-tied", tmp_path))).config
        plain = ModelShape.of(config)
        few = ModelShape.of(config, Precision.uniform(DType.FLOAT16)._replace(weights=INT4))
        assert (plain.shares_head, few.shares_head) == (True, False)
        assert few.num_parameters == plain.num_parameters
        stage = StageCost(model=few, layers=LayerRange(0, config.num_layers))
        assert stage.weight_bytes == few.weight_bytes


class TestTime:
    def test_4_bits_are_read_as_they_are_for_few_tokens_and_unpacked_for_many(self) -> None:
        few = Precision.uniform(DType.FLOAT16)._replace(weights=INT4)
        shape = ModelShape.of(config_of("llama-2-13b"), few)
        stage = StageCost(model=shape, layers=LayerRange(13, 27))
        for num_tokens in (1, 64):
            work = Work.decode(num_tokens, num_tokens)
            assert unpacking_work(stage, work).moved_bytes == 0
            assert matrices_work(stage, work).moved_bytes > stage.layer_bytes
        at_64, at_65 = (
            step_time(stage, Work.decode(count, count), RTX_3060).total_s for count in (64, 65)
        )
        written = 2 * stage.touched(65).parameters
        work = Work.decode(65, 65)
        assert unpacking_work(stage, work).moved_bytes == stage.matrix_bytes + written
        assert at_65 - at_64 > written / RTX_3060.bandwidth_bytes_per_s

    def test_before_ampere_4_bits_are_unpacked_from_two_tokens_on(self) -> None:
        few = Precision.uniform(DType.FLOAT16)._replace(weights=INT4)
        shape = ModelShape.of(config_of("llama-2-7b"), few)
        stage = StageCost(model=shape, layers=LayerRange(0, 32))
        t4 = gpu_named("t4-16gb")
        one, two = (step_time(stage, Work.decode(count, count), t4).total_s for count in (1, 2))
        unpacked = 2 * stage.touched(2).parameters
        assert two - one > 2 * unpacked / t4.bandwidth_bytes_per_s * 0.9

    def test_one_pass_over_all_weights_takes_72_ms_on_rtx_3060s(self) -> None:
        assert LLAMA_13B.weight_bytes / RTX_3060.bandwidth_bytes_per_s == pytest.approx(
            0.0723, abs=5e-5
        )
        # The embedding is 1.3 % of them, and only the rows of the tokens are read.
        stages = create_stages("llama-2-13b", 3)
        least_s = sum(reading_s(stage, Work.decode(1, 1)) for stage in stages)
        assert least_s == pytest.approx(0.0723, rel=0.015)
        times = [step_time(stage, Work.decode(1, 1), RTX_3060) for stage in stages]
        assert all(time.compute_s == 0 for time in times)
        assert sum(time.bandwidth_s for time in times) == pytest.approx(least_s, rel=0.002)
        # 13 or 14 layers of 9 kernels; the host is done long before the GPU.
        launches = [6 + 14 * 9, 6 + 13 * 9, 6 + 13 * 9 + 16]
        assert [num_launches(stage, Work.decode(1, 1)) for stage in stages] == launches
        host_s = 3e-6 * sum(launches) + 3 * 2 * (15e-6 + 10_240 / 12e9)
        assert sum(time.host_s for time in times) == pytest.approx(host_s)

    def test_batch_8_of_length_512_gives_98_tokens_a_second_on_three(self) -> None:
        stages = create_stages("llama-2-13b", 3)
        least_s = sum(reading_s(stage, Work.decode(8, 512)) for stage in stages)
        assert 8 / least_s == pytest.approx(98, rel=0.015)
        time_s = sum(step_time(stage, Work.decode(8, 512), RTX_3060).total_s for stage in stages)
        assert 1.01 * least_s < time_s < 1.03 * least_s

    def test_batch_96_of_length_256_gives_749_on_four_and_1113_pipelined(self) -> None:
        stages = create_stages("llama-2-13b", 4)
        least_s = sum(reading_s(stage, Work.decode(96, 256)) for stage in stages)
        assert 96 / least_s == pytest.approx(749, rel=0.015)
        # Four micro-batches of 24, every stage always busy.
        small = Work.decode(24, 256)
        times_s = [reading_s(stage, small) for stage in stages]
        assert 24 * 4 / sum(times_s) == pytest.approx(1113, rel=0.015)
        # With ten layers each, the last one is the slowest: it has the head.
        assert 24 / max(times_s) == pytest.approx(1089, rel=0.001)
        assert times_s.index(max(times_s)) == 3
        charged_s = [step_time(stage, small, RTX_3060).total_s for stage in stages]
        assert 1.03 * max(times_s) < max(charged_s) < 1.06 * max(times_s)

    def test_a_long_prompt_is_limited_by_arithmetic(self) -> None:
        (whole,) = create_stages("llama-2-13b", 1)
        time = step_time(whole, Work.of([(0, 512)], 1), RTX_3060)
        # 2 x 12.69e9 weights of layers x 512 tokens, and attention, by hand.
        attention = 40 * 4 * 5120 * (512 * 513 // 2)
        matrices = 512 * 2 * 40 * (4 * 5120**2 + 3 * 5120 * 13824)
        assert time.compute_s == pytest.approx((matrices + attention) / 25.6e12)
        # The head has one row, and norms and activations have no arithmetic to hide behind.
        head_s = LLAMA_13B.head_bytes / 360e9
        assert 2 * head_s < time.bandwidth_s < 0.2 * time.compute_s

    def test_a_small_model_on_a_fast_gpu_waits_for_its_host_unless_a_graph_is_launched(
        self,
    ) -> None:
        (whole,) = create_stages("llama-160m", 1)
        fast = gpu_named("rtx-4090-24gb")
        decode, chunk = Work.decode(2, 1), Work.of([(0, 2)], 1)
        assert num_launches(whole, decode) == 6 + 12 * 9 + 16
        assert num_host_launches(whole, decode) == 6 + 1 + 16
        launches = num_host_launches(whole, chunk)
        assert launches == num_launches(whole, chunk) == 6 + 12 * (9 + 4) + 16
        copies_s = 2 * (15e-6 + 2 * 2 * 768 / 12e9)
        # Without a graph the host is what takes longest, and the card hides behind it.
        assert step_time(whole, chunk, fast).total_s == pytest.approx(launches * 10e-6 + copies_s)
        gaps_s = 3e-6 * num_launches(whole, decode)
        assert step_time(whole, decode, fast).host_s == pytest.approx(gaps_s + copies_s)
        assert num_host_launches(whole, Work.decode(257, 1)) == 6 + 12 * 9 + 16

    def test_a_chunk_behind_a_context_gathers_it_unless_scores_are_capped(self) -> None:
        stage = create_stages("llama-2-13b", 3)[1]
        first, later = Work.of([(0, 64)], 0), Work.of([(960, 64)], 0)
        gathered = 2 * 1024 * stage.kv_bytes_per_token
        read = 960 * stage.kv_bytes_per_token
        difference = attention_work(stage, later).moved_bytes - attention_work(stage, first)[0]
        assert difference == gathered + read
        capped = StageCost(model=replace(LLAMA_13B, caps_scores=True), layers=stage.layers)
        assert attention_work(capped, first) == attention_work(stage, first)
        assert attention_work(stage, later)[0] - attention_work(capped, later)[0] == gathered
        # Both gathers, and the copy of the output, are launches that go too.
        for work in (first, later):
            saved = 3 * len(stage.layers)
            assert num_launches(stage, work) - num_launches(capped, work) == saved
        decode = Work.decode(8, 512)
        assert attention_work(capped, decode) == attention_work(stage, decode)
        assert num_launches(capped, decode) == num_launches(stage, decode)

    @pytest.mark.parametrize(
        ("kv_format", "is_charged"), [(KvFormat.FLOAT16, False), (KvFormat.INT8, True)]
    )
    def test_cards_before_ampere_convert_kv_of_8_bits_for_chunks(
        self, kv_format: KvFormat, *, is_charged: bool
    ) -> None:
        precision = Precision.uniform(DType.FLOAT16)._replace(kv=kv_format)
        stage = StageCost(
            model=ModelShape.of(config_of("llama-2-13b"), precision), layers=LayerRange(13, 27)
        )
        turing = gpu_named("t4-16gb")
        ampere = replace(turing, capability=Capability(8, 0))
        chunk, decode = Work.of([(3584, 512)], 0), Work.decode(8, 512)
        times_s = [step_time(stage, chunk, gpu).total_s for gpu in (turing, ampere)]
        left_bytes = [kv_memory_bytes(stage, gpu) for gpu in (ampere, turing)]
        assert (times_s[0] > times_s[1]) == (left_bytes[0] > left_bytes[1]) == is_charged
        assert step_time(stage, decode, turing) == step_time(stage, decode, ampere)

    def test_the_head_is_read_only_for_logits_and_only_once(self) -> None:
        last = create_stages("llama-2-13b", 3)[-1]
        none, one, two = (last.moved_bytes(Work(4, 4, 4, rows)) for rows in (0, 1, 2))
        assert one - none == LLAMA_13B.head_bytes
        assert two == one

    def test_half_the_efficiency_takes_twice_as_long(self) -> None:
        stage = create_stages("llama-2-13b", 3)[1]
        full, half = (
            step_time(stage, Work.decode(1, 1), RTX_3060, efficiency=share) for share in (1.0, 0.5)
        )
        assert half.bandwidth_s == pytest.approx(2 * full.bandwidth_s)
        assert half.host_s == full.host_s

    @given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=5))
    def test_work_counts_what_a_loop_over_tokens_counts(
        self, slices: list[tuple[int, int]]
    ) -> None:
        work = Work.of(slices, 0)
        attended = [start + i + 1 for start, count in slices for i in range(count)]
        assert work.num_tokens == len(attended)
        assert work.num_attended_tokens == sum(attended)
        assert work.num_context_tokens == sum(start + count for start, count in slices)
        chunks = [(start, count) for start, count in slices if count > 1]
        assert work.num_chunks == len(chunks)
        assert work.num_gathered_tokens == sum(start + count for start, count in chunks if start)
        assert work.num_chunk_context_tokens == sum(start + count for start, count in chunks)


class TestTables:
    @pytest.mark.parametrize("name", GPUS)
    def test_every_gpu_says_its_memory_in_its_name_and_has_sane_figures(self, name: str) -> None:
        gpu = gpu_named(name)
        assert name.endswith(f"-{gpu.memory_bytes >> 30}gb")
        assert 1e11 < gpu.bandwidth_bytes_per_s < 1e13
        # Between Pascal's 20 operations a byte and the 500 of today's cards.
        assert 10 < gpu.flops_per_s / gpu.bandwidth_bytes_per_s < 500

    def test_the_reference_card_has_the_figures_of_its_data_sheet(self) -> None:
        assert RTX_3060.memory_bytes == 12 * 2**30
        assert (RTX_3060.bandwidth_bytes_per_s, RTX_3060.flops_per_s) == (360e9, 25.6e12)

    @pytest.mark.parametrize("name", ["RTX 3060 12GB", "rtx_3060_12gb", " rtx-3060-12gb "])
    def test_spelling_of_names_is_forgiven(self, name: str) -> None:
        assert gpu_named(name) == RTX_3060

    def test_an_unknown_name_gets_near_ones(self) -> None:
        for name in ("rtx3060", "3060", "RTX-3060"):
            with pytest.raises(InvalidArgumentError, match="mean rtx-3060-8gb, rtx-3060-12gb"):
                gpu_named(name)
        with pytest.raises(InvalidArgumentError, match="did you mean rtx-4090-24gb") as caught:
            gpu_named("rtx-4090-42gb")
        assert caught.value.field == "gpu"
        with pytest.raises(InvalidArgumentError, match="known are 100mbe") as caught:
            network_named("avian carriers")
        assert caught.value.field == "network"

    def test_a_hidden_state_takes_a_twelfth_of_a_millisecond_on_1_gbit(self) -> None:
        network = network_named("1gbe")
        # 0.08 ms on the bare line, and the headers of each frame.
        assert network.transfer_s(10_240) == pytest.approx(0.082e-3 / 0.9415, rel=0.01)
        assert [n.bits_per_s for n in NETWORKS.values()][:-1] == sorted(
            n.bits_per_s for n in NETWORKS.values() if n.name != "loopback"
        )


class TestMemory:
    def test_a_stage_of_13_layers_has_room_for_about_12_000_tokens(self) -> None:
        stage = create_stages("llama-2-13b", 3)[1]
        assert stage.kv_bytes_per_token == 266_240
        tokens = num_kv_blocks(stage, kv_memory_bytes(stage, RTX_3060), 16) * 16
        assert 12_000 < tokens < 17_000

    def test_weights_that_do_not_fit_are_refused_with_numbers(self) -> None:
        (whole,) = create_stages("llama-2-13b", 1)
        with pytest.raises(InsufficientMemoryError, match=r"26031728640.*12884901888"):
            kv_memory_bytes(whole, RTX_3060)

    def test_kv_that_does_not_fit_is_refused_with_numbers(self) -> None:
        stage = create_stages("llama-2-13b", 3)[1]
        with pytest.raises(InsufficientMemoryError, match=f"{12 * 2**30} bytes.*beside"):
            kv_memory_bytes(stage, RTX_3060, 12 * 2**30)
        with pytest.raises(InsufficientMemoryError, match="one block of 16 tokens"):
            num_kv_blocks(stage, 266_240 * 16 - 1, 16)
        assert num_kv_blocks(stage, 266_240 * 16, 16) == 1


class TestShapes:
    def test_a_shape_has_neither_weights_nor_tokenizer(self) -> None:
        files = open_model("shape:llama-2-13b")
        assert files.model_id == "shape:llama-2-13b"
        assert files.tokenizer_files() is None
        assert files.config.max_model_len == 4096
        with pytest.raises(UnsupportedModelError, match=r"shape:llama-2-13b.*emulated"):
            _ = files.tensor_names
        with pytest.raises(UnsupportedModelError, match=r"shape:llama-2-13b.*emulated"):
            files.open_tensors([])

    def test_every_shape_is_a_model_of_its_own(self) -> None:
        names = ("llama-2-7b", "llama-2-13b", "llama-3.1-8b", "llama-1b")
        prints = {open_model(f"shape:{name}").fingerprint for name in names}
        assert len(prints) == len(names)
        assert config_of("llama-3.1-8b").max_model_len == 131072

    def test_an_unknown_shape_gets_the_known_ones(self) -> None:
        with pytest.raises(ModelFilesError, match=r"llama-9.*llama-2-13b"):
            open_model("shape:llama-9")

    def test_a_folder_with_a_configuration_alone_has_a_fingerprint_and_no_weights(
        self, tmp_path: Path
    ) -> None:
        raw = dict(config_of("llama-1b").raw)
        (tmp_path / "config.json").write_text(json.dumps(raw))
        files = open_model(str(tmp_path))
        assert len(files.fingerprint) == 64
        with pytest.raises(ModelFilesError, match=r"no weights.*model\.safetensors"):
            files.open_tensors(["model.norm.weight"]).__enter__()
