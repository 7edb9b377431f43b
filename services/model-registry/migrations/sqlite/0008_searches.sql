-- What searches walk along: versions by their newest change, of all models and of one, and the newest of each stage.
CREATE INDEX versions_by_update ON versions (update_time DESC, model, version DESC);
CREATE INDEX versions_of_model_by_update ON versions (model, update_time DESC, version DESC);
CREATE INDEX versions_by_stage ON versions (model, stage, version);

-- Which logged models have a value of a metric, as latest_metrics_by_value tells of runs.
CREATE INDEX logged_model_metrics_by_value ON logged_model_metrics (key, value, model);
