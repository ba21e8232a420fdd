"""The key-value cache: rows are claimed and released, passes over any of them equal each row alone, growth."""

import pytest
import torch

from latentlm.config import TransformerConfig
from latentlm.model import cache as cache_module
from latentlm.model.transformer import Transformer


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2)).eval()


def test_the_lowest_free_row_is_claimed_and_comes_back_empty(transformer):
    cache = transformer.new_cache(3, 4)
    assert [cache.claim() for _ in range(3)] == [0, 1, 2]
    assert cache.num_free == 0
    cache.lengths[1] = 4
    cache.release(2)
    cache.release(1)
    assert (cache.claim(), cache.lengths[1], cache.num_free) == (1, 0, 1)


@pytest.mark.parametrize("rows", [[1, 3, 4], [0, 2], [2], [1, 2, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("lengths", [[3, 5, 2, 5, 4], [4, 4, 4, 4, 4]])
@torch.inference_mode()
def test_rows_between_others_are_left_alone(transformer, rows, lengths):
    """A step of some rows equals each alone, and writes one position of these rows and nothing else."""
    cache = transformer.new_cache(5, 8)
    past, new = torch.randn(5, 6, 32), torch.randn(5, 1, 32)
    transformer.extend(past, cache.open(6))
    cache.lengths = list(lengths)
    before = cache.keys.clone()
    together = transformer.extend(new[rows], cache.open(1, rows))
    for place, row in enumerate(rows):
        alone = transformer.new_cache(1, 8)
        transformer.extend(past[row : row + 1, : lengths[row]], alone.open(lengths[row]))
        alone.lengths[0] = lengths[row]
        single = transformer.extend(new[row : row + 1], alone.open(1))
        torch.testing.assert_close(together[place], single[0], atol=1e-5, rtol=1e-4)
        before[:, row, :, lengths[row]] = cache.keys[:, row, :, lengths[row]]
    assert torch.equal(cache.keys, before)
    assert torch.isfinite(cache.values).all()


@pytest.mark.parametrize("lengths", [[3, 5, 2, 5, 4, 1, 2], [4] * 7])
@torch.inference_mode()
def test_rows_far_apart_are_copied_out_and_equal_the_block(transformer, monkeypatch, lengths):
    cache, rows = transformer.new_cache(7, 8), [1, 6]
    transformer.extend(torch.randn(7, 6, 32), cache.open(6))
    cache.lengths = list(lengths)
    new = torch.randn(2, 1, 32)
    apart = transformer.extend(new, cache.open(1, rows))
    keys, _ = cache.open(1, rows).layer(0).update(*torch.randn(2, 2, 2, 1, 8))
    assert keys.shape[0] == 2
    assert cache.open(1, [1, 3]).layer(0).apart is False
    monkeypatch.setattr(cache_module, "MOST_SPREAD", 10)
    assert cache.open(1, rows).layer(0).apart is False
    torch.testing.assert_close(transformer.extend(new, cache.open(1, rows)), apart, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_what_an_owner_left_behind_does_not_reach_the_next(transformer):
    """Also where its row began anew on the way, and where it lies between others."""
    cache, past = transformer.new_cache(3, 8), torch.randn(3, 4, 32)
    for _ in range(3):
        cache.claim()
    transformer.extend(past, cache.open(4))
    cache.keys[:, 1, :, :4] = cache.values[:, 1, :, :4] = torch.nan
    cache.lengths = [4, 1, 4]
    cache.release(1)
    assert not cache.keys[:, 1].any()
    assert not cache.values[:, 1].any()
    assert cache.keys[:, [0, 2], :, :4].all()


@torch.inference_mode()
def test_a_chunk_goes_into_rows_in_the_middle(transformer):
    """Prompts in two chunks, in rows 1 and 2 of four, equal the whole."""
    x = torch.randn(2, 7, 32)
    whole = transformer.extend(x, transformer.new_cache(2, 7).open(7))
    cache = transformer.new_cache(4, 8)
    first = transformer.extend(x[:, :3], cache.open(3, [1, 2]))
    cache.lengths = [0, 3, 3, 0]
    second = transformer.extend(x[:, 3:], cache.open(4, [1, 2]))
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, atol=1e-5, rtol=1e-4)
    assert not cache.keys[:, [0, 3]].any()


def test_a_cache_grows_by_doubling_up_to_its_limit_and_keeps_what_it_has(transformer):
    cache = transformer.new_cache(2, 0)
    sizes = []
    for length in (3, 4, 7, 25, 26):
        cache.reserve(length, 26)
        sizes.append(cache.capacity)
        cache.keys[0, 0, 0, length - 1, 0] = length
    assert sizes == [3, 6, 12, 25, 26]
    assert [int(cache.keys[0, 0, 0, length - 1, 0]) for length in (3, 4, 7, 25)] == [3, 4, 7, 25]
