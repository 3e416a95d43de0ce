import pytest

from expunge.core.errors import UserError, unknown
from expunge.core.fingerprint import fingerprint
from expunge.core.needs import parse_need


def test_names_are_read_as_quantities() -> None:
    need = parse_need("ref_forget_seq_logp_B")
    assert (need.side, need.quantity, need.reference, need.cacheable) == ("forget", "seq_logp_B", True, True)
    assert not parse_need("ref_retain_logits_BNV").cacheable
    assert not parse_need("retain_logp_BN").cacheable
    for name in ("forgot_logp_BN", "forget_logp_B", "logp_BN", "ref_ref_forget_logp_BN"):
        with pytest.raises(ValueError, match="not a quantity"):
            parse_need(name)


def test_the_source_of_a_quantity_decides_what_it_needs() -> None:
    assert not parse_need("ref_forget_label_BN").from_reference
    assert parse_need("ref_forget_hidden_BTD").from_reference
    assert not parse_need("forget_hidden_BTD").from_reference
    with_pass = {"len_B": False, "logp_BN": True, "hidden_BTD": True}
    assert {name: parse_need(f"forget_{name}").from_pass for name in with_pass} == with_pass
    assert not parse_need("control_D").from_pass
    assert parse_need("ref_expert_logits_BNV").side == "expert"
    assert parse_need("expert_logits_BNV").data_side == "forget"


def test_unknown_names_come_with_the_near_match_and_the_list() -> None:
    fault = unknown("method", "SimNPOO", ["NPO", "SimNPO", "DPO"])
    assert "did you mean 'SimNPO'?" in fault.hint
    assert "known: DPO, NPO, SimNPO" in fault.hint


def test_faults_are_reported_together() -> None:
    error = UserError.of([unknown("method", "A", ["B"]), unknown("split", "C", ["D"])])
    assert len(error.faults) == 2
    assert "unknown method 'A'" in str(error)
    assert "unknown split 'C'" in str(error)


def test_fingerprints_ignore_key_order_only() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
