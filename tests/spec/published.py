"""What is published of real models: parameter totals, and which config belongs to which checkpoint index."""

from __future__ import annotations

# Total parameters, a tied head counted once. "index": equal to metadata.total_size / bytes per element of the checkpoint's
# own index (see INDEXES). "hub": safetensors.total of the model's entry on the Hugging Face Hub, as public catalogues repeat
# it. "module": the count of transformers' module, where the Hub's has the tied head twice or could not be looked up;
# TestAsTransformers holds all of them against transformers' modules besides. Of a multimodal model: its text part.
PUBLISHED = {
    "DeepSeek-R1": 671_026_419_200,  # as the model that it was made from
    "DeepSeek-V3": 671_026_419_200,  # module; the paper's 671 B, without the layer of multi-token prediction
    "Devstral-Small-2507": 23_572_403_200,  # index
    # hub, which has 110_468_824_832, less the layer of multi-token prediction with its own embedding and head
    "GLM-4.5-Air": 106_852_251_264,
    "Kimi-K2-Instruct": 1_026_408_232_448,  # module; catalogues have 1026.5 B, with the 62 M scales of its FP8 blocks
    "Llama-2-13b-chat--RUTERGPT13B": 13_015_864_320,  # index, less its 40 stored rotary tables
    "Llama-2-70b--lzlv_70b": 68_976_648_192,  # hub
    "Llama-2-70B-neuron": 68_976_648_192,  # hub
    "Llama-2-7B-neuron": 6_738_415_616,  # index
    "Llama-2-7b-chat-hf": 6_738_415_616,  # index
    "Llama-3-70B-neuron": 70_553_706_496,  # hub
    "Llama-3-8B-neuron": 8_030_261_248,  # hub
    # hub, less the vision tower: 871_932_416 in both
    "Llama-4-Maverick-17B-128E-Instruct": 400_711_848_960,
    "Llama-4-Scout-17B-16E-Instruct": 107_769_861_120,
    "Llama-3.2-1B-Instruct": 1_235_814_400,  # hub
    "Llama-3.2-3B-Instruct": 3_212_749_824,  # index
    "Meta-Llama-3.1-405B": 405_853_388_800,  # hub
    "Meta-Llama-3.1-70B": 70_553_706_496,  # hub; index of a derived model with 6 more tokens
    "Meta-Llama-3.1-8B": 8_030_261_248,  # hub
    "medgemma-27b-it--gemma3": 27_009_346_304,  # index, less its vision tower
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,  # hub
    "Mistral-7B-v0.1": 7_241_732_096,  # index
    "Mixtral-8x22B-v0.1": 140_620_634_112,  # index of a derived model
    "Mixtral-8x7B-v0.1": 46_702_792_704,  # hub
    "Olmo-3.1-32B-Instruct": 32_233_522_176,  # module
    "Phi-3-mini--keyformer": 3_821_079_552,  # index
    "Phi-3-mini-4k--Chocolatine-SLERP": 3_821_079_552,  # hub
    "Qwen2.5-14B--cogito-v1": 14_765_947_904,  # index
    "Qwen2.5-32B-Instruct": 32_763_876_352,  # hub
    "Qwen2.5-7B-Instruct": 7_615_616_512,  # hub
    "Qwen3-0.6B": 596_049_920,  # module
    "Qwen3-1.7B": 1_720_574_976,  # index
    "Qwen3-235B-A22B": 235_093_634_560,  # hub
    "Qwen3-235B-A22B-FP8": 235_093_634_560,  # as the model that it quantises
    "Qwen3-30B-A3B": 30_532_122_624,  # hub
    "Qwen3-30B-A3B-FP8": 30_532_122_624,  # as the model that it quantises
    "Qwen3-30B-A3B-Instruct-2507": 30_532_122_624,  # hub
    "Qwen3-32B": 32_762_123_264,  # hub
    "Qwen3-32B-FP8": 32_762_123_264,  # as the model that it quantises
    "Qwen3-8B": 8_190_735_360,  # hub
    "Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,  # hub
    "WizardLM-2-8x22B": 140_620_634_112,  # index
    "dolphin-2.5-mixtral-8x7b": 46_702_809_088,  # index
    "RedPajama-INCITE-7B-Base--gpt_neox": 6_857_302_016,  # index, less its stored masks and rotary tables
    "falcon-40b": 41_303_293_952,  # index, less the second copy of the head
    "gemma-2-2b--mithoon-2b": 2_614_341_888,  # hub
    "gemma-2b": 2_506_172_416,  # index
    "gpt-oss-120b": 116_829_156_672,  # hub, which counts what its blocks and scales stand for
    "gpt-oss-20b": 20_914_757_184,  # hub
    "gpt-oss-20b-hf-clone": 20_914_757_184,  # hub
    "granite-3.1-1b-a400m-instruct": 1_334_628_352,  # module
    "gpt2-xl": 1_557_611_200,  # hub
    "mediatek/Qwen2-1.5B-Instruct": 1_543_714_304,  # hub
    "mediatek/Qwen2-7B-Instruct": 7_615_616_512,  # hub
    "mediatek/Qwen2.5-0.5B-Instruct": 494_032_768,  # hub
    "mediatek/Qwen2.5-3B": 3_085_938_688,  # hub
    "mediatek/Qwen3-4B": 4_022_468_096,  # hub
    "mediatek/gemma2_2b_it": 2_614_341_888,  # hub
    "mediatek/phi-4-mini-reasoning": 3_836_021_760,  # hub
    "mediatek/phi3.5-mini-instruct": 3_821_079_552,  # hub
    "pythia-410m": 405_334_016,  # github.com/EleutherAI/pythia, table of models
    "phi-4": 14_659_507_200,  # hub
    "SmolLM-135M-seqcls": 134_515_008,  # hub
}
CHANGES = {
    # Fine-tuned for another task, with one more token: what it was made from has neither.
    "SmolLM-135M-seqcls": {"architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "pad_token_id": None},
    "pythia-410m": {"architectures": ["GPTNeoXForCausalLM"]},
    # Falcon-40B's first config is of its own code, RefinedWeb, with other names for the same.
    "falcon-40b": {
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
    },
    # A vendor's name for what the original checkpoint calls phi3.
    "mediatek/phi-4-mini-reasoning": {"model_type": "phi3"},
}

# Checkpoint index: (its config, bytes of an element, elements in total_size that are not parameters of that config).
INDEXES = {
    "Devstral-Small-2507.model.safetensors": ("Devstral-Small-2507", 2, 0),
    # 40 rotary tables of 64 float32 are as large as 40 · 64 · 2 elements of float16.
    "Llama-2-13b.model.safetensors": ("Llama-2-13b-chat--RUTERGPT13B", 2, 40 * 64 * 2),
    "Llama-2-70b--lzlv.model.safetensors": ("Llama-2-70b--lzlv_70b", 2, None),
    "Llama-2-7b-chat-hf.pytorch_model.bin": ("Llama-2-7b-chat-hf", 2, 0),
    # Six tokens were added to the embedding and to the head.
    "Llama-3.1-70B--Reflection.model.safetensors": ("Meta-Llama-3.1-70B", 4, 2 * 6 * 8192),
    "Llama-3.2-3B-Instruct.model.safetensors": ("Llama-3.2-3B-Instruct", 2, 0),
    # Tied in transformers, but stored a second time.
    "falcon-40b.pytorch_model.bin": ("falcon-40b", 2, 65024 * 8192),
    "gemma-2b.model.safetensors": ("gemma-2b", 2, 0),
    # Of each layer a mask of 2048² booleans, counted as an eighth of a byte each, one number, and a rotary table of 64.
    "gpt_neox-7B--RedPajama.pytorch_model.bin": ("RedPajama-INCITE-7B-Base--gpt_neox", 2, 32 * (2048**2 // 16 + 1 + 64)),
    # The vision tower and its projector.
    "medgemma-27b-it--gemma3.model.safetensors": ("medgemma-27b-it--gemma3", 2, 423_060_336),
    "Mistral-7B-v0.1.pytorch_model.bin": ("Mistral-7B-v0.1", 4, 0),
    "WizardLM-2-8x22B.model.safetensors": ("WizardLM-2-8x22B", 2, 0),
    "mixtral-8x7b--dolphin.pytorch_model.bin": ("dolphin-2.5-mixtral-8x7b", 2, 0),
    "Qwen2.5-14B--cogito.model.safetensors": ("Qwen2.5-14B--cogito-v1", 2, 0),
    "Qwen3-1.7B.model.safetensors": ("Qwen3-1.7B", 2, 0),
    # Its bytes are counted in test_packed_bytes.
    "gpt-oss-20b.model.safetensors": ("gpt-oss-20b", 2, None),
    "phi-3-mini.model.safetensors": ("Phi-3-mini--keyformer", 2, 0),
}
OTHER_INDEXES = {
    "Llama-3.1-8B-bnb-int8.model.safetensors", "Qwen-72B-v1.model.safetensors", "bloom.pytorch_model.bin",
}  # fmt: skip
"""Of architectures that are refused, each by its own name."""
