"""Chains that were judged before: never good at a moment at which they would not be judged good."""

import pytest

from vo_kit import START, founded
from xtreemos.vo import chaincache, founding
from xtreemos.vo.chaincache import ChainCache
from xtreemos.vo.credentials import Issuer, SessionKeys
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.model import Session
from xtreemos.vo.x509 import verify_user_x509

SESSION = Session(sid="a" * 32, user="alice", created_at=START, ends_at=START + 3600, expires_at=START + 3600, roles=("member",))


@pytest.fixture
def judged(monkeypatch):
    moments = []

    def verify(chain, trust, now):
        moments.append(now)
        return verify_user_x509(chain, trust, now)

    monkeypatch.setattr(chaincache, "verify_user_x509", verify)
    return moments


def keys_and_chain(vo="demo"):
    keys = founding.IssuingKeys(founded(vo).secrets)
    return keys, Issuer(keys).issue_user(SESSION, SessionKeys.fresh().public(), serial=1, now=START).x509


def test_a_chain_is_judged_once_for_all_moments_between_two_good_ones(judged):
    keys, chain = keys_and_chain()
    cache = ChainCache()
    expected = verify_user_x509(chain, keys.trust, START)
    for now in (START, START + 100, START + 50, START, START + 100):
        assert cache.verify(chain, keys.trust, now) == expected
    assert judged == [START, START + 100]


def test_a_known_chain_is_refused_outside_its_time_and_stays_good_inside(judged):
    keys, chain = keys_and_chain()
    cache = ChainCache()
    cache.verify(chain, keys.trust, START)
    for now in (START + 13 * 3600, START - 3600):
        with pytest.raises(BadCredential):
            cache.verify(chain, keys.trust, now)
    cache.verify(chain, keys.trust, START)
    assert len(judged) == 3


def test_another_trust_document_judges_anew():
    keys, chain = keys_and_chain()
    other, _ = keys_and_chain("other")
    cache = ChainCache()
    cache.verify(chain, keys.trust, START)
    with pytest.raises(BadCredential):
        cache.verify(chain, other.trust, START)
    cache.verify(chain, keys.trust, START)


def test_bad_chains_and_too_many_good_ones_are_not_kept(monkeypatch, judged):
    monkeypatch.setattr(chaincache, "CHAINS_MAX", 2)
    keys, chain = keys_and_chain()
    more = [keys_and_chain()[1] for _ in range(2)]
    cache = ChainCache()
    for one in (chain, *more, chain):
        cache.verify(one, keys.trust, START)
    assert len(judged) == 4
    for _ in range(2):
        with pytest.raises(BadCredential):
            cache.verify([b"no certificate"], keys.trust, START)
    assert len(judged) == 6
