from expunge_nearest_mean import METHOD

from expunge.testing import check_method, small_inputs


def test_it_keeps_the_contract_and_moves_forgotten_rows(tmp_path):
    inputs = small_inputs(tmp_path)
    made = check_method(METHOD, inputs)
    before = (inputs.head.logits(inputs.z_forget).argmax(1) == 5).float().mean()
    after = (made.logits(inputs.z_forget).argmax(1) == 5).float().mean()
    assert before > 0.8 and after < before
