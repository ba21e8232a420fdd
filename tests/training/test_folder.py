"""Whose a folder is: what is in it is never lost to another run."""

import pytest

from latentlm.training.folder import claim


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_without_its_checkpoints_is_not_free(tmp_path, resume):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="holds a model, but no checkpoint to resume from"):
        claim(tmp_path, resume)


def test_a_run_that_never_reached_a_checkpoint_is_free(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    claim(tmp_path, resume=False)


def test_nothing_to_resume_is_said(tmp_path, capsys):
    (tmp_path / "checkpoints" / "step-00000004.tmp").mkdir(parents=True)
    claim(tmp_path, resume=True)
    claim(tmp_path / "new", resume=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "no checkpoint to resume from, training starts from the beginning"
    ] * 2
    (tmp_path / "checkpoints" / "step-00000004").mkdir()
    claim(tmp_path, resume=True)
    assert capsys.readouterr().err == ""
