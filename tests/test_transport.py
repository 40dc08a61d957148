"""SPM's facilitated transport: strengths by hand, and images against adapters that run beside the layers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from resurgence.cli import main
from resurgence.diffusion.image_sets import read_image_set
from resurgence.diffusion.sampling import SamplingConfig, sample
from resurgence.erasers.gradient.spm_transport import opened, sample_opened, transport_strength
from resurgence.erasers.lora import save_loras
from slow import embed, pipeline, same, snapshot

pytest_plugins = ("erasure_fixtures",)

CFG = SamplingConfig(steps=3, guidance=3.0, batch=2, size=16)
ROWS = pd.DataFrame(
    {"prompt": ["the ship", "the bird", "the ship", "the dog and the old cat", "the ship"], "seed": [3, 4, 5, 6, 7]}
)


def adapters_of(pipe) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A random adapter of rank 1 for two concepts: on a linear layer of each transformer block, and on convolutions."""
    g, found = torch.Generator().manual_seed(2), {}
    for concept in ("ship", "old cat"):
        found[concept] = {}
        for name, module in pipe.unet.named_modules():
            if name.endswith(("attn2.to_k", "ff.net.2")):
                shapes = (1, module.in_features), (module.out_features, 1)
            elif name.endswith("conv1"):
                shapes = (1, module.in_channels, *module.kernel_size), (module.out_channels, 1, 1, 1)
            else:
                continue
            found[concept][name] = tuple(0.3 * torch.randn(shape, generator=g) for shape in shapes)
    return found


def test_transport_strength(pipe):
    prompts, concepts = ["the ship", "a photo of the ship", "the bird", "the dog and the old cat"], ["ship", "old cat"]
    sentence = transport_strength(pipe, prompts, concepts, "sentence")
    for i, p in enumerate(prompts):
        for j, c in enumerate(concepts):
            a, b = embed(pipe, p).flatten(), embed(pipe, c).flatten()
            assert float(sentence[i, j]) == pytest.approx(float((a @ b / (a.norm() * b.norm())).detach()), abs=1e-5)
    tokens = transport_strength(pipe, prompts, concepts, "tokens")
    words = {c: set(pipe.tokenizer(c, add_special_tokens=False).input_ids) for c in (*prompts, *concepts)}
    assert tokens.tolist() == [
        [pytest.approx(len(words[p] & words[c]) / len(words[c])) for c in concepts] for p in prompts
    ]
    assert tokens[1, 0] == tokens[3, 1] == 1 and tokens[2, 0] < 1  # every token of the concept is in the prompt
    assert torch.equal(transport_strength(pipe, prompts, concepts), torch.maximum(sentence, tokens))
    assert transport_strength(pipe, ["old cat"], ["old cat"], "sentence").item() == pytest.approx(1, abs=1e-5)


def beside(pipe, adapters, strengths) -> list:
    """Hooks that add strength * B(A(input)) to the output of each adapted layer, one for each concept."""
    modules, handles = dict(pipe.unet.named_modules()), []
    for concept, adapter in adapters.items():
        for name, (down, up) in adapter.items():

            def add(module, inputs, output, down=down, up=up, strength=strengths[concept]):
                if isinstance(module, nn.Linear):
                    return output + strength * (inputs[0] @ down.T @ up.T)
                inner = nn.functional.conv2d(inputs[0], down, None, module.stride, module.padding)
                return output + strength * nn.functional.conv2d(inner, up)

            handles.append(modules[name].register_forward_hook(add))
    return handles


@pytest.mark.parametrize("measure", ["both", "sentence", "tokens"])
def test_images_are_those_of_adapters_beside_the_layers(pipe, measure):
    """Each image alone, with hooks of its prompt's strengths; the base is as it was, bit for bit."""
    adapters, before = adapters_of(pipe), snapshot(pipe)
    made = dict(sample_opened(pipe, ROWS, CFG, adapters, measure))
    assert sorted(made) == list(range(len(ROWS))) and same(before, snapshot(pipe))
    plain = dict(sample(pipe, ROWS, CFG))
    changed = 0
    for place, row in ROWS.iterrows():
        strengths = transport_strength(pipe, [row["prompt"]], list(adapters), measure)[0].tolist()
        handles = beside(pipe, adapters, dict(zip(adapters, strengths, strict=True)))
        ((_, wanted),) = sample(pipe, ROWS.iloc[[place]].reset_index(drop=True), CFG)
        for handle in handles:
            handle.remove()
        difference = np.abs(np.asarray(made[place], dtype=int) - np.asarray(wanted, dtype=int))
        assert difference.max() <= 1
        changed += int((np.asarray(made[place]) != np.asarray(plain[place])).any())
    assert changed >= 3  # the adapters do something


def test_weights_come_back_after_an_error(pipe):
    before = snapshot(pipe)
    with pytest.raises(RuntimeError), opened(pipe.unet, adapters_of(pipe), {"ship": 1.0, "old cat": 0.5}):
        assert not same(before, snapshot(pipe))
        raise RuntimeError
    assert same(before, snapshot(pipe))


def test_command(tmp_path, capsys):
    """`resurgence sample --adapters`: the images of the function, and a manifest that says how they were made."""
    pipe = pipeline("epsilon")
    pipe.save_pretrained(tmp_path / "base")
    adapters = {"ship": adapters_of(pipe)["ship"]}
    save_loras(adapters, tmp_path / "adapters")
    task = {"name": "t", "kind": "object", "erase": ["ship"], "retain": ["dog"], "mapping": "street"}
    task |= {"templates": ["a photo of the {}"], "seeds": {"erase": 2, "retain": 1}, "finetune": ["cat"]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    command = ["sample", "--base", tmp_path / "base", "--task", tmp_path / "task.yaml", "--device", "cpu"]
    command += ["--adapters", tmp_path / "adapters", "--transport", "tokens", "--out", tmp_path / "out"]
    settings = ["--set", *(f"{k}={v}" for k, v in (("steps", 3), ("guidance", 3.0), ("batch", 2), ("size", 16)))]
    assert main.main([str(word) for word in command + settings]) == 0
    rows, images = read_image_set(tmp_path / "out" / "images.parquet")
    made = dict(sample_opened(pipe, rows, CFG, adapters, "tokens"))
    stacked = np.stack([np.asarray(made[n]) for n in range(len(rows))]).astype(int)
    assert np.abs(stacked - images.permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["parameters"]["transport"] == "tokens" and "adapters" in manifest["inputs"]
    command[command.index(tmp_path / "adapters")] = tmp_path / "nowhere"
    assert main.main([str(word) for word in command + settings]) != 0
    assert f"{tmp_path / 'nowhere'} is missing" in capsys.readouterr().err
