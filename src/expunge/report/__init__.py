"""Tables, plots, the HTML report and the model card: all rendered from the JSON that the stages wrote."""
