"""The ResNet with fine maps, and the maps of all encoders of frames."""

import copy

import pytest
import torch
from torch import nn

from partwhole.core.checkpoint import load_encoder, save_encoder
from partwhole.core.encoder import Wrapped, build, describe
from partwhole.video import network
from partwhole.video.maps import frame_map
from partwhole.video.network import FrameResNet
from partwhole.vision.backbone import Backbone
from partwhole.vision.maps import feature_map
from partwhole.vision.network import Network


def x(size=64, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def reference(weights, pixels, read):
    """torchvision's ResNet-18 with the strides of its last two stages taken away: maps of stages ``read`` and 4."""
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    net.fc = nn.Identity()
    net.load_state_dict({k: v for k, v in weights.items() if k in net.state_dict()}, strict=False)
    for stage in (net.layer3, net.layer4):
        stage[0].conv1.stride = stage[0].downsample[0].stride = (1, 1)
    net.eval()
    y = net.maxpool(net.relu(net.bn1(net.conv1(pixels))))
    maps = [y := stage(y) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
    return maps[read - 1], maps[-1]


@torch.no_grad()
def test_it_is_torchvisions_network_without_the_strides():
    torch.manual_seed(0)
    encoder = FrameResNet().eval()
    third, last = reference(encoder.trunk.net.state_dict(), x(), 3)
    assert third.shape == (2, 256, 8, 8)
    assert torch.allclose(encoder.map(x()), third, atol=1e-5)
    assert torch.allclose(encoder(x()), last.flatten(2).mT, atol=1e-5)
    assert encoder.dim == 512
    assert torch.equal(frame_map(encoder, x()), encoder.map(x()))


@torch.no_grad()
def test_one_that_is_not_dense_trains_as_usual_and_is_read_as_finely():
    torch.manual_seed(0)
    coarse = FrameResNet(dense=False).eval()
    fine = FrameResNet().eval()
    fine.load_state_dict(coarse.state_dict())
    usual = Backbone("resnet18", size=64).eval()
    usual.load_state_dict({k.removeprefix("trunk."): v for k, v in coarse.state_dict().items()})
    for _ in range(2):
        assert torch.allclose(coarse(x()), usual(x()), atol=1e-5)
        assert torch.equal(coarse.map(x()), fine.map(x()))
    assert coarse(x()).shape == (2, 4, 512)
    with pytest.raises(RuntimeError):
        coarse.map(torch.zeros(1, 4, 64, 64))
    assert torch.allclose(coarse(x()), usual(x()), atol=1e-5)  # after an error too


@pytest.mark.parametrize(("read", "channels", "side"), [(1, 16, 16), (2, 32, 8), (3, 64, 8), (4, 128, 8)])
def test_any_stage_can_be_read(read, channels, side):
    assert FrameResNet(width=0.25, read=read, dense=False).map(x()).shape == (2, channels, side, side)


def test_deeper_ones_and_the_small_stem():
    assert FrameResNet("resnet50", width=0.25).map(x(32)).shape == (2, 256, 4, 4)
    assert FrameResNet(width=0.25, stem="small").map(x(32)).shape == (2, 64, 16, 16)
    for name in ("resnet18d", "convnext_atto"):
        with pytest.raises(ValueError, match="no plain ResNet, whose strides could be taken away: take resnet18"):
            FrameResNet(name)
    with pytest.raises(ValueError, match="read is 5: a ResNet has the stages 1 to 4"):
        FrameResNet(read=5)


def test_it_can_be_written_down_kept_and_copied(tmp_path):
    encoder = FrameResNet(width=0.125, size=32, dense=False).eval()
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    twin = copy.deepcopy(encoder)
    assert isinstance(build(describe(encoder)), FrameResNet)
    twin.map(x())  # moves strides of its own, not those of the first
    for other in (loaded.eval(), twin):
        assert torch.equal(other(x()), encoder(x()))
        assert torch.equal(frame_map(other, x()), frame_map(encoder, x()))


def test_its_layers_can_learn_at_their_own_rates_and_its_names_are_the_trunks():
    encoder = FrameResNet(width=0.125)
    assert all(name.startswith("trunk.net.") for name in encoder.state_dict())
    staged = {id(p) for part in encoder.stages() for p in part.parameters()}
    assert staged == {id(p) for p in encoder.parameters()}


def test_other_encoders_have_the_maps_of_images():
    vit = Network(name="vit", dim=32, depth=1).build(32)
    assert torch.equal(frame_map(vit, x(32)), feature_map(vit, x(32)))
    wrapped = Wrapped(nn.Conv2d(3, 8, 4, 4), 8)
    assert frame_map(wrapped, x(32)).shape == (2, 8, 8, 8)


def test_a_recipes_network_is_the_fine_one_where_it_is_a_plain_resnet(tmp_path):
    from safetensors.torch import save_file

    made = network.build(Network(width=0.125), 32, dense=True)
    assert isinstance(made, FrameResNet)
    assert (made.dense, made.width, made.size) == (True, 0.125, 32)
    assert isinstance(
        network.build(Network(name="vit", dim=32, depth=1), 32, dense=True), type(Network(name="vit").build(32))
    )
    assert isinstance(network.build(Network(name="resnetv2_18", width=1.0), 32, dense=True), Backbone)
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.clone() for k, v in made.trunk.net.state_dict().items()}, weights)
    given = network.build(Network(width=0.125, weights=weights), 32, dense=False).eval()
    assert torch.equal(frame_map(given, x(32)), frame_map(made.eval(), x(32)))
