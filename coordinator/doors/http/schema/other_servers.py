"""Fields of other servers' APIs, which their clients send here too, often with their defaults.

Those that would change the text are taken with the value that asks for nothing, and refused by
name with any other; the rest changes nothing. A field that stands nowhere is refused unless it is
null or empty.
"""

from pydantic import Field

from coordinator.doors.http.schema.base import (
    Advisory,
    OnlyOne,
    OnlyTrue,
    RequestModel,
    Unsupported,
)


class ServingFields(RequestModel):
    """How a request is served, whatever it asks for."""

    priority: Advisory = None
    request_id: Advisory = None
    rid: Advisory = None
    session_id: Advisory = None
    chat_id: Advisory = None
    conversation_id: Advisory = None
    message_id: Advisory = None
    trace_id: Advisory = None
    tags: Advisory = None
    timeout: Advisory = None
    extra_headers: Advisory = None
    extra_query: Advisory = None
    cache_prompt: Advisory = None
    id_slot: Advisory = None
    keep_alive: Advisory = None
    provider: Advisory = None
    timings_per_token: Advisory = None
    return_progress: Advisory = None
    usage: Advisory = None


class OtherServersFields(ServingFields):
    """What vLLM, SGLang, llama.cpp, Ollama and text-generation-webui take beside OpenAI's fields.

    A field that only tunes another one, such as `dry_base`, changes nothing: the other one is off.
    """

    # How text is written.
    skip_special_tokens: OnlyTrue = Field(None, description="Text never has them.")
    spaces_between_special_tokens: Advisory = None
    include_stop_str_in_output: Unsupported = None
    no_stop_trim: Unsupported = None
    detokenize: OnlyTrue = None
    return_tokens_as_token_ids: Unsupported = None
    return_full_text: Unsupported = None
    return_hidden_states: Unsupported = None
    return_routed_experts: Unsupported = None
    decoder_input_details: Unsupported = None
    details: Advisory = None
    post_sampling_probs: Unsupported = None
    n_probs: Unsupported = None
    raw_output: Unsupported = None
    perf_metrics_in_response: Unsupported = None
    reasoning: Advisory = None
    include_reasoning: Advisory = None
    separate_reasoning: Advisory = None
    stream_reasoning: Advisory = None
    reasoning_format: Advisory = None

    # How tokens are chosen.
    do_sample: OnlyTrue = Field(None, description="`temperature` 0 is what takes the likeliest.")
    watermark: Unsupported = None
    min_keep: Unsupported = None
    backend_sampling: Advisory = None
    typical: OnlyOne = None
    typical_p: OnlyOne = None
    typ_p: OnlyOne = None
    tfs: OnlyOne = None
    tfs_z: OnlyOne = None
    top_a: Unsupported = None
    epsilon_cutoff: Unsupported = None
    eta_cutoff: Unsupported = None
    nsigma: Unsupported = None
    top_n_sigma: Unsupported = None
    smoothing_factor: Unsupported = None
    smoothing_curve: Advisory = None
    mirostat: Unsupported = None
    mirostat_mode: Unsupported = None
    mirostat_tau: Advisory = None
    mirostat_eta: Advisory = None
    dry_multiplier: Unsupported = None
    dry_base: Advisory = None
    dry_allowed_length: Advisory = None
    dry_penalty_last_n: Advisory = None
    dry_range: Advisory = None
    dry_sequence_breakers: Advisory = None
    xtc_probability: Unsupported = None
    xtc_threshold: Advisory = None
    dynamic_temperature: Unsupported = None
    dynatemp_range: Unsupported = None
    dynatemp_low: Advisory = None
    dynatemp_high: Advisory = None
    dynatemp_exponent: Advisory = None
    temperature_last: Unsupported = None
    repeat_penalty: OnlyOne = None
    repeat_last_n: Advisory = None
    repetition_penalty_range: Unsupported = None
    encoder_repetition_penalty: OnlyOne = None
    no_repeat_ngram_size: Unsupported = None
    penalty_alpha: Unsupported = None
    guidance_scale: OnlyOne = None
    negative_prompt: Unsupported = None
    bad_words: Unsupported = None
    banned_strings: Unsupported = None
    ban_eos_token: Unsupported = None
    allowed_token_ids: Unsupported = None
    logits_processors: Unsupported = None
    use_beam_search: Unsupported = None
    num_beams: OnlyOne = None
    length_penalty: OnlyOne = None
    early_stopping: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    guided_decoding_backend: Advisory = None

    # What is read.
    chat_template: Unsupported = None
    documents: Unsupported = None
    n_keep: Unsupported = None
    options: Unsupported = None
    raw: Unsupported = None
    safe_prompt: Unsupported = None
    mm_processor_kwargs: Advisory = Field(None, description="Of media, which are refused.")
    media_io_kwargs: Advisory = Field(None, description="Of media, which are refused.")
    use_audio_in_video: Advisory = Field(None, description="Of media, which are refused.")
