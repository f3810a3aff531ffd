"""compare: verdicts, the summary, the table and the plots."""

from expunge.config import load_config
from expunge.data.assignment import REQUEST
from expunge.files import read_json, read_manifest, write_json, write_text
from expunge.paths import COST, METRICS, MODELS, ORIGINAL, REPORTS, SPLIT, SUMMARY
from expunge.progress import say
from expunge.report.summary import build_summary
from expunge.report.tables import flat, headline, markdown, plot_csv
from expunge.stages import run

PLOTS = {
    "accuracy": {"retain": "accuracy.retain", "forget": "accuracy.forget", "test retained": "accuracy.test_retain", "test forgotten": "accuracy.test_forget"},
    "divergence": {"KL on forgotten rows (nats)": "divergence.forget.kl", "JS on forgotten rows (nats)": "divergence.forget.js"},
    "membership": {"loss AUC": "membership.loss_auc", "MIA member share": "membership.mia_lr_member"},
}


def main() -> None:
    config = load_config()
    described = read_json(MODELS / ORIGINAL / "model.json")
    card = described["card"]
    model = {
        "name": card["name"],
        "feature_dim": card["feature_dim"],
        "saw_forget_data": card["saw_forget_data"],
        "digest": "sha256:" + read_manifest(MODELS / ORIGINAL)["files"]["model.safetensors"]["sha256"],
    }
    summary = build_summary(
        read_json(SPLIT / REQUEST),
        model,
        read_json(METRICS / "references.json"),
        {name: read_json(METRICS / f"{name}.json") for name in config.methods},
        {name: read_json(COST / f"fit-{name}.json") for name in config.methods},
        config.verdict,
    )
    write_json(SUMMARY, summary)
    write_json(REPORTS / "metrics.json", flat(summary))
    write_text(REPORTS / "results.md", markdown(summary))
    for name, paths in PLOTS.items():
        write_text(REPORTS / "plots" / f"{name}.csv", plot_csv(summary, paths))
    say(headline(summary).replace("**", ""))


if __name__ == "__main__":
    run(main)
