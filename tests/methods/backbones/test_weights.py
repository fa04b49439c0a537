import pickle
import subprocess
import sys
import threading
import urllib.error
from email.message import Message

import pytest
import torch
from safetensors.torch import save_file

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.methods.backbones import weights, weights_hub
from wsolbench.methods.backbones.adapter import create_backbone
from wsolbench.methods.backbones.loading import check_weights_fit, load_weights
from wsolbench.methods.backbones.weights import weights_identity


@pytest.fixture
def state():
    torch.manual_seed(4)
    return {n: t.clone() for n, t in create_backbone("test_resnet").net.state_dict().items()}


def saved(folder, tensors, name="weights.safetensors"):
    path = folder / name
    save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    return str(path)


def test_identity_needs_no_torch():
    code = (
        "import sys; from wsolbench.methods.backbones.weights import weights_identity as w;"
        "print(w('imagenet', 'resnet50'), w('none', 'x'), 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "{'source': 'imagenet', 'tag': 'resnet50.tv_in1k'} {'source': 'none'} False False"


def test_identity_of_a_file_is_its_content_not_its_path(tmp_path, state):
    first, second = saved(tmp_path, state, "a.safetensors"), saved(tmp_path, state, "b.safetensors")
    assert weights_identity(first, "test_resnet") == weights_identity(second, "test_resnet")
    state["conv1.0.weight"][0] += 1
    assert weights_identity(saved(tmp_path, state, "b.safetensors"), "test_resnet") != weights_identity(
        first, "test_resnet"
    )


@pytest.mark.parametrize(
    ("name", "tag"),
    [("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"), ("resnet50.a1_in1k", "resnet50.a1_in1k"),
     ("efficientnet_b0", "efficientnet_b0.ra_in1k")],
)  # fmt: skip
def test_imagenet_is_an_exact_tag(name, tag):
    assert weights_identity("imagenet", name) == {"source": "imagenet", "tag": tag}


def test_packaged_tags_exist_in_timm():
    for name in weights.IMAGENET_TAGS:
        config = weights_hub.timm_config(weights.imagenet_tag(name))
        assert config is not None, name
        hub_id = config.hf_hub_id
        tag = weights.imagenet_tag(name)
        assert weights_hub._hub_id(tag) == (hub_id if "/" in hub_id else f"{hub_id}{tag}"), name


def test_file_is_loaded_with_heads_ignored_halves_widened_and_prefixes_taken_off(tmp_path, state):
    tensors = {f"module.{n}": (t.half() if t.is_floating_point() else t) for n, t in state.items()}
    tensors |= {"module.fc.weight": torch.ones(5, 96), "module.fc.bias": torch.ones(5)}
    path = saved(tmp_path, tensors)
    body = create_backbone("test_resnet")
    found = load_weights(body, path)
    assert found["ignored"] == ["fc.bias", "fc.weight"]
    assert (found["source"], found["tensors"], len(found["sha256"])) == ("file", len(state), 64)
    assert body.net.conv1[0].weight.dtype == torch.float32
    torch.testing.assert_close(body.net.conv1[0].weight, state["conv1.0.weight"].half().float())
    check_weights_fit("test_resnet", path)


def test_our_own_checkpoints_load(tmp_path, state, make):
    model = make.build("classifier")
    path = saved(tmp_path, model.state_dict())
    body = create_backbone("test_resnet")
    load_weights(body, path)
    assert torch.equal(body.net.conv1[0].weight, model.backbone.net.conv1[0].weight)


def test_shared_weights_load_and_do_not_fit_another_network(shared_weights):
    check_weights_fit("resnet18", str(shared_weights), stride=8)
    body = create_backbone("resnet18", 16)
    assert load_weights(body, str(shared_weights))["tensors"] == 120
    with pytest.raises(
        BenchError,
        match=r"do not fit backbone 'resnet50'.*layer1.0.conv1.weight is 64x64x3x3 in the file and 64x64x1x1",
    ):
        check_weights_fit("resnet50", str(shared_weights))
    with pytest.raises(BenchError, match=r"not in the file, first layer1.2.conv1.weight"):
        check_weights_fit("resnet34", str(shared_weights))


def wrong_shape(state):
    return state | {"conv1.0.weight": torch.zeros(1, 3, 3, 3)}


def missing(state):
    return {n: t for n, t in state.items() if not n.startswith("layer4")}


def deeper(state):
    return state | {"layer4.9.conv1.weight": torch.zeros(2, 2, 1, 1)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [(wrong_shape, "conv1.0.weight is 1x3x3x3 in the file"), (missing, "not in the file, first layer4.0"),
     (deeper, "1 tensors more, first layer4.9.conv1.weight")],
)  # fmt: skip
def test_misfits_are_refused_and_change_nothing(tmp_path, state, damage, message):
    path = saved(tmp_path, damage(state))
    body = create_backbone("test_resnet")
    before = {n: t.clone() for n, t in body.state_dict().items()}
    for attempt in (lambda: load_weights(body, path), lambda: check_weights_fit("test_resnet", path)):
        with pytest.raises(BenchError, match=message):
            attempt()
    assert all(torch.equal(t, before[n]) for n, t in body.state_dict().items())


def test_torch_files_load_without_running_code(tmp_path, state):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state, "epoch": 3}, path)
    body = create_backbone("test_resnet")
    load_weights(body, str(path))
    assert torch.equal(body.net.conv1[0].weight, state["conv1.0.weight"])
    check_weights_fit("test_resnet", str(path))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(BenchError, match="holds pickled code"):
        check_weights_fit("test_resnet", str(path))
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BenchError):
        check_weights_fit("test_resnet", str(plain))
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_half_a_file_is_refused(tmp_path, state, name):
    whole = tmp_path / f"whole-{name}"
    if name.endswith("pth"):
        torch.save(state, whole)
    else:
        saved(tmp_path, state, whole.name)
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BenchError, match="Copy or download it again"):
        check_weights_fit("test_resnet", str(path))


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(BenchError, match=r"There is no weights file .*nowhere.pth.*none, imagenet, or the path"):
        weights_identity(str(tmp_path / "nowhere.pth"), "resnet18")
    other = tmp_path / "weights.ckpt"
    other.write_bytes(b"x")
    with pytest.raises(BenchError, match=r"'\.ckpt' is not read"):
        weights_identity(str(other), "resnet18")


def test_no_network_names_the_tag_and_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(weights_hub, "_ask", lambda url: "Name or service not known")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(BenchError, match=r"resnet18.tv_in1k.*Name or service.*timm/resnet18.tv_in1k.*--weights PATH"):
        check_weights_fit("resnet18", "imagenet")


class Answer:
    """What urlopen gives."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_the_hub_is_asked_once_and_never_waited_for(monkeypatch):
    silence, asked = threading.Event(), []

    def never(request, timeout):
        asked.append((request.full_url, request.method, timeout))
        silence.wait()
        raise OSError("too late to be heard")

    monkeypatch.setattr(weights_hub, "PATIENCE", 0.05)
    monkeypatch.setattr("urllib.request.urlopen", never)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    weights_hub._ask.cache_clear()
    said = [weights_hub.why_unreachable("resnet18.tv_in1k") for _ in range(2)]
    silence.set()
    weights_hub._ask.cache_clear()
    assert said == ["no answer within 0.05 s"] * 2
    ((url, method, timeout),) = asked
    assert (method, timeout, "timm/resnet18.tv_in1k" in url) == ("HEAD", 0.05, True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda *_, **__: Answer(), ""),
        (urllib.error.HTTPError("u", 404, "Not Found", Message(), None), "Not Found"),
        (urllib.error.URLError("Name or service not known"), "Name or service not known"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
    ],
)
def test_what_the_hub_answers(monkeypatch, answer, said):
    def fail(*_, **__):
        raise answer

    monkeypatch.setattr("urllib.request.urlopen", fail if isinstance(answer, Exception) else answer)
    weights_hub._ask.cache_clear()
    assert said in weights_hub._ask("https://example.org/model.safetensors")
    assert bool(weights_hub._ask("https://example.org/model.safetensors")) is bool(said)
    weights_hub._ask.cache_clear()


def test_an_offline_client_is_not_asked(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(weights_hub, "_ask", lambda url: pytest.fail("asked"))
    assert weights_hub.why_unreachable("resnet18.tv_in1k") == "HF_HUB_OFFLINE is set"
    assert "smoke goes on from random weights" in weights.offline_notice("imagenet", "resnet18")
    assert weights.offline_notice("none", "resnet18") == ""


def test_cached_imagenet_file_is_used_without_network(monkeypatch, tmp_path, state):
    path = saved(tmp_path, state)
    monkeypatch.setattr(weights, "imagenet_tag", lambda _: "resnet18.tv_in1k")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: path)
    found = load_weights(create_backbone("test_resnet"), "imagenet")
    assert (found["source"], found["tag"], len(found["sha256"])) == ("imagenet", "resnet18.tv_in1k", 64)


def test_none_changes_nothing(state):
    body = create_backbone("test_resnet")
    before = body.net.conv1[0].weight.clone()
    assert load_weights(body, "none") == {"source": "none"}
    assert torch.equal(before, body.net.conv1[0].weight)
