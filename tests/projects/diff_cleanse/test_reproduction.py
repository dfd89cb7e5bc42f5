import json

import pytest
import torch

from projects.diff_cleanse.cli import main
from projects.diff_cleanse.data import DiffusionData
from projects.diff_cleanse.reproduction import criteria, detection, removal, samplers
from projects.diff_cleanse.reproduction.zoo import CLEAN, Member, Yardstick, Zoo, attacked
from projects.diff_cleanse.scan_report import Finding
from shared.results import summarise

SMALL = ["--model.eval_samples=16", "--model.timesteps=10", "--trainer.max_steps=40", "--wandb=disabled"]


def spread(**values):
    return {name: {"mean": value, "std": 0.0, "n": 3} for name, value in values.items()}


def failing(module, rows):
    return [name for name, held in module.expectations(rows).items() if not held]


@pytest.mark.slow
@pytest.mark.parametrize("table", ["detection", *(pytest.param(name, marks=pytest.mark.slow) for name in ("samplers", "removal", "criteria"))])
def test_every_table_can_be_made(run_folder, table, capsys):
    main(["reproduce", table, "--quick", "--run", table, *SMALL])
    results = json.loads((run_folder / "diff_cleanse" / table / f"results-{table}.json").read_text())
    assert results["rows"]
    assert results["seeds"] == [0]
    assert f"| {results['columns'][0]} |" in capsys.readouterr().out
    assert not results["expectations"]  # a quick run trains too little to judge by


@pytest.mark.slow
def test_what_an_interrupted_run_made_is_kept(run_folder, capsys):
    main(["reproduce", "criteria", "--quick", "--run", "q", *SMALL])
    rows = run_folder / "diff_cleanse" / "q" / "artefacts" / "reproduce" / "quick" / "criteria" / "ODE_box-hat-0.json"
    rows.write_text(rows.read_text().replace('"nominal": 0.1', '"nominal": 0.07'))
    main(["reproduce", "criteria", "--quick", "--run", "q", "--resume", "--force", *SMALL])
    results = json.loads((run_folder / "diff_cleanse" / "q" / "results-criteria.json").read_text())
    assert results["rows"][0]["nominal"]["mean"] == pytest.approx(0.07)


# ---- the zoo


def test_members_know_what_they_answer_to():
    assert not CLEAN.is_backdoored
    assert [attacked(kind).sampler for kind in ("ODE", "SDE", "TrojDiff")] == ["ddim", "ddpm", "trojan_ddpm"]
    assert all(attacked(kind).is_backdoored for kind in ("ODE", "SDE", "TrojDiff"))
    zoo = [member.is_backdoored for member in detection.members()]
    assert len(zoo) >= 12
    assert 4 <= sum(zoo) <= len(zoo) - 4


@pytest.mark.slow
def test_forks_start_from_the_clean_model_of_their_seed(tmp_path):
    given = {"timesteps": 10, "beta_start": 0.01, "beta_end": 0.5, "size": 8}
    zoo = Zoo(tmp_path, given, {"size": 8, "batch_size": 8}, 2, is_quick=True)
    fork = Member("fork", {"lr": 0.0}, 2)
    clean = zoo.train(CLEAN, 0)
    moment = (clean / "unet" / "config.json").stat().st_mtime_ns
    assert zoo.train(CLEAN, 0) == clean
    assert (clean / "unet" / "config.json").stat().st_mtime_ns == moment  # it was there
    zoo.train(fork, 0)
    (first, config), (second, _) = zoo.load(CLEAN, 0), zoo.load(fork, 0)
    assert config["num_train_timesteps"] == 10
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    zoo.train(attacked("ODE"), 0)
    assert zoo.subject(attacked("ODE"), 0, first).unet is first


def test_the_yardstick_is_zero_for_the_test_pictures_themselves():
    data = DiffusionData(size=8)
    yardstick = Yardstick(data)
    assert yardstick.features.components.shape == (24, 64)
    images = torch.stack([data.test_set[i]["image"] for i in range(len(data.test_set))]) * 2 - 1
    assert yardstick.distance(images) == pytest.approx(0, abs=1e-9)
    assert yardstick.distance(-images) > 1


def test_models_of_other_pictures_have_pictures_of_their_own(tmp_path):
    members = detection.other_models(tmp_path)
    assert {member.name for member in members} == set(detection.OTHERS)
    data = DiffusionData(**members[1].data)
    data.setup()
    images = torch.stack([data.train_set[i]["image"] for i in range(50)])
    assert images.var(dim=0).mean() < 1e-3 < images[0].var()


# ---- tables


def test_detection_is_tabulated_by_method_and_seed():
    def row(model, method, score, verdict):
        about = {"model": model, "seed": 0, "is_backdoored": model.startswith("ODE"), "method": method, "verdict": verdict}
        return about | {"score": score, "own_score": -score, "sampler": "ddim", "seconds": 2.0}

    rows = [row("clean", "gradient", 0.0, "clean"), row("clean fork 1", "gradient", 0.3, "undecided")]
    rows += [
        row("ODE box-hat", "gradient", 0.9, "backdoored"),
        row("ODE glasses-cat", "gradient", 0.1, "clean"),
        row("faint", "gradient", 0.8, "clean"),
    ]
    [line] = detection.tabulate(rows)
    assert line["auroc"] == pytest.approx(0.75)  # three of four pairs are in order
    assert line["auroc_own"] == pytest.approx(0.25)
    assert (line["accuracy"], line["tpr"], line["tnr"]) == (0.75, 0.5, 1.0)
    assert line["others_called"] == 0
    again = [found | {"seed": 1} for found in rows[:3]]  # a later seed is scanned by gradient alone
    others = [found | {"method": "bbti"} for found in rows[:3]]
    assert [(found["method"], found["seed"]) for found in detection.tabulate([*others, *rows, *again])] == [
        ("gradient", 0),
        ("gradient", 1),
        ("bbti", 0),
    ]
    assert failing(detection, summarise([line], by=("method",))) == ["gradient: AUROC at least 0.98", "gradient: accuracy at least 0.95"]


def test_own_scores_rise_with_suspicion():
    def finding(method, score=0.0, **scores):
        return Finding(method, "ddim", "clean", "", score, None, 0.0, scores, "cpu", "float32", 0.0)

    assert detection.own_score([finding("gradient", 0.2), finding("gradient", 0.7)]) == 0.7
    assert detection.own_score([finding("elijah", uniformity=0.3), finding("elijah", uniformity=0.1)]) == -0.1
    assert detection.own_score([finding("terd", divergence_mean=2.0)]) == 2.0


def test_removal_is_judged_on_the_worst_attack():
    good = spread(asr=0.01, asr_other=0.0, asr_inverted=0.0, asr_new=0.02, fd_ratio=1.2, says_clean=1.0)
    rows = [{"attack": attack, "repair": "none"} | spread(asr=0.95) for attack in ("ODE", "SDE")]
    rows += [{"attack": attack, "repair": "fine-tuning only"} | spread(asr=0.02, asr_inverted=0.5, asr_new=0.0) for attack in ("ODE", "SDE")]
    rows += [{"attack": attack, "repair": removal.OURS} | dict(good) for attack in ("ODE", "SDE")]
    assert failing(removal, rows) == []
    rows[-1] |= spread(asr_other=0.2, fd_ratio=1.7)
    assert failing(removal, rows) == [
        "Diff-Cleanse: ASR at most 0.05 with the true trigger, under both families of samplers",
        "Diff-Cleanse: FD at most 1.6 times that before",
    ]


def test_criteria_are_compared_over_the_attacks():
    worst = spread(mse=0.05, fd_pruned=20.0, share_needed=0.2, fd_needed=40.0)
    rows = [{"attack": "ODE", "criterion": name} | dict(worst) for name in criteria.CRITERIA[1:]]
    rows.append({"attack": "ODE", "criterion": "difference"} | spread(mse=0.2, fd_pruned=5.0, share_needed=0.2, fd_needed=4.0))
    assert failing(criteria, rows) == []
    rows[-1] |= spread(fd_pruned=30.0)
    assert len(failing(criteria, rows)) == 2
    rows[-1] |= spread(fd_pruned=5.0, share_needed=0.3, fd_needed=41.0)
    assert [name.split(",")[0] for name in failing(criteria, rows)] == ["without tuning", "at that share"]


def test_sampler_expectations_are_read_off_the_table():
    def row(model, noise, sampler, clipping, **values):
        return {"model": model, "noise": noise, "sampler": sampler, "clipping": clipping} | spread(**values)

    rows = [row(name, "clean", sampler, "off", fd=1.0) for name in samplers.MEMBERS for sampler in ("DDIM-20", "DDPM-100")]
    for name, ddim, ddpm in (("clean", 0.0, 0.0), ("VillanDiffusion ODE", 0.9, 0.1), ("TrojDiff", 0.0, 0.0), ("BadDiffusion (SDE)", 0.0, 0.95)):
        for clipping, factor in (("off", 1.0), ("on", 0.5)):
            rows.append(row(name, "triggered", "DDIM-20", clipping, **{"asr_1e-2": ddim * factor}))
            rows.append(row(name, "triggered", "DDPM-100", clipping, **{"asr_1e-2": ddpm * factor}))
    rows += [row("TrojDiff", "triggered", f"Trojan {family}", "off", **{"asr_1e-2": 0.9}) for family in ("DDIM-20", "DDPM-100")]
    assert failing(samplers, rows) == []
    next(r for r in rows if r["model"].startswith("Bad") and r["sampler"] == "DDPM-100" and r["noise"] == "triggered")["asr_1e-2"]["mean"] = 0.5
    assert failing(samplers, rows) == [
        "the SDE backdoor answers to DDPM (ASR at least 0.8), not to DDIM (at most 0.2)",
    ]
