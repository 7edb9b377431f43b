//! Runs of MLflow's prompt engineering page: a prompt, what a model answered, and a model that asks again.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::experiments::experiment_id;
use super::request::Fields;
use super::{Answer, Mlflow, Refusal, answer, artifacts};
use crate::tracking::{Batch, ExperimentRef, Millis, Run, RunChange, RunDraft, RunStatus, limits};

const TABLE: &str = "eval_results_table.json";

pub(super) fn routes() -> Router<Mlflow> {
    Router::new().route("/mlflow/runs/create-promptlab-run", post(create))
}

/// What was tried.
struct Trial {
    template: String,
    prompt_params: Vec<(String, String)>,
    route: String,
    model_params: Vec<(String, String)>,
    input: String,
    output: Option<String>,
    output_params: Vec<(String, String)>,
    /// Of the client: the model is loaded with this one.
    mlflow_version: String,
}

fn unspecified(name: &str) -> Refusal {
    Refusal::invalid(format!("CreatePromptlabRun request must specify {name}."))
}

fn given(fields: &Fields, name: &str) -> Result<String, Refusal> {
    fields.text(name)?.filter(|text| !text.is_empty()).ok_or_else(|| unspecified(name))
}

/// Pairs of `key` and `value`, where values may be numbers and truths too.
fn pairs(fields: &Fields, name: &str) -> Result<Vec<(String, String)>, Refusal> {
    let pair = |pair: Fields| {
        let value = match pair.value("value") {
            None => String::new(),
            Some(Value::String(_)) => pair.text_or_empty("value")?,
            Some(value) => value.to_string(),
        };
        Ok((pair.required("key")?, value))
    };
    fields.objects(name)?.into_iter().map(pair).collect()
}

impl Trial {
    fn read(fields: &Fields) -> Result<Self, Refusal> {
        let template = given(fields, "prompt_template")?;
        let prompt_params = pairs(fields, "prompt_parameters")?;
        if prompt_params.is_empty() {
            return Err(unspecified("prompt_parameters"));
        }
        let trial = Self {
            template,
            prompt_params,
            route: given(fields, "model_route")?,
            model_params: pairs(fields, "model_parameters")?,
            input: given(fields, "model_input")?,
            output: fields.text("model_output")?,
            output_params: pairs(fields, "model_output_parameters")?,
            mlflow_version: given(fields, "mlflow_version")?,
        };
        // It becomes a line of a list of packages.
        let is_version = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_');
        if !trial.mlflow_version.chars().all(is_version) {
            return Err(Refusal::invalid("Invalid value for parameter 'mlflow_version': it must be as 3.6.0"));
        }
        Ok(trial)
    }

    fn batch(&self) -> Batch {
        let more = [("model_route", &self.route), ("prompt_template", &self.template)];
        let more = more.map(|(key, value)| (key.to_owned(), value.clone()));
        let logged = format!(r#"[{{"path": "{TABLE}", "type": "table"}}]"#);
        let tags = [("mlflow.loggedArtifacts", logged), ("mlflow.runSourceType", "PROMPT_ENGINEERING".to_owned())];
        Batch {
            metrics: Vec::new(),
            params: [self.model_params.as_slice(), more.as_slice()].concat(),
            tags: tags.map(|(key, value)| (key.to_owned(), value)).to_vec(),
        }
    }

    /// The files of the run: the table of what was answered, and a model that MLflow's clients load. What they read as
    /// YAML is JSON, which is YAML too.
    fn files(&self, run: &Run) -> [(&'static str, String); 4] {
        let keys = |pairs: &[(String, String)]| pairs.iter().map(|(key, _)| json!(key)).collect::<Vec<_>>();
        let values = |pairs: &[(String, String)]| pairs.iter().map(|(_, value)| json!(value)).collect::<Vec<_>>();
        let object = |pairs: &[(String, String)]| {
            pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect::<Map<String, Value>>()
        };
        let (prompt, output) = (&self.prompt_params, &self.output_params);
        let columns = [keys(prompt), vec![json!("prompt"), json!("output")], keys(output)].concat();
        let row = [values(prompt), vec![json!(self.input), json!(self.output)], values(output)].concat();
        let column = |name: &Value| json!({"type": "string", "name": name, "required": true});
        let inputs: Value = keys(prompt).iter().map(column).collect();
        let model = json!({
            "artifact_path": "model",
            "flavors": {"python_function": {
                "env": {},
                "loader_module": "mlflow.prompt.promptlab_model",
                "parameters_path": "parameters.yaml",
            }},
            "mlflow_version": self.mlflow_version,
            "model_uuid": Uuid::new_v4().simple().to_string(),
            "run_id": run.id,
            "signature": {"inputs": inputs.to_string(), "outputs": json!([column(&json!("output"))]).to_string()},
        });
        let parameters = json!({
            "prompt_template": self.template,
            "prompt_parameters": object(prompt),
            "model_parameters": object(&self.model_params),
            "model_route": self.route,
        });
        [
            (TABLE, json!({"columns": columns, "data": [row]}).to_string()),
            ("model/MLmodel", model.to_string()),
            ("model/parameters.yaml", parameters.to_string()),
            ("model/requirements.txt", format!("mlflow[gateway]=={}\n", self.mlflow_version)),
        ]
    }
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiment = experiment_id(&given(&fields, "experiment_id")?)?;
    let (trial, tags) = (Trial::read(&fields)?, fields.pairs("tags")?);
    let batch = trial.batch();
    limits::batch(&batch)?;
    for (index, (key, value)) in tags.iter().enumerate() {
        limits::tag(&format!("tags[{index}]"), key, value)?;
    }
    // Asked before there is a run that could have no files.
    artifacts::must_be_kept_here(&mlflow.store.experiment(&ExperimentRef::Id(experiment)).await?.artifact_location)?;
    let id = Uuid::new_v4().simple().to_string();
    let name = fields.text("run_name")?.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("run-{}", &id[..8]));
    let user_id = fields.text("user_id")?.unwrap_or_else(|| "unknown".to_owned());
    let start_time = fields.millis("start_time")?.unwrap_or_else(Millis::now);
    let run = mlflow.store.create_run(&RunDraft { id, experiment, name, user_id, start_time, tags }).await?;
    let kept = keep(&mlflow, &run, &batch, &trial).await;
    let status = Some(if kept.is_ok() { RunStatus::Finished } else { RunStatus::Failed });
    let end = RunChange::Update { status, end_time: Some(Millis::now()), name: None };
    let run = mlflow.store.change_run(&run.id, &end).await?;
    kept?;
    Ok(answer::one("run", answer::run(run)))
}

async fn keep(mlflow: &Mlflow, run: &Run, batch: &Batch, trial: &Trial) -> Result<(), Refusal> {
    mlflow.store.log(&run.id, batch).await?;
    for (path, text) in trial.files(run) {
        mlflow.put_below(&run.artifact_uri, path, text.into()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_of_logged_artifacts_is_written_as_it_is_read() {
        let trial = json!({
            "prompt_template": "say {{a}}", "prompt_parameters": [{"key": "a", "value": 1}], "model_route": "r",
            "model_input": "say 1", "mlflow_version": "3.6.0",
        });
        let Value::Object(fields) = trial else { panic!("an object") };
        let trial = Trial::read(&Fields::from_map(fields)).unwrap();
        let tag = &trial.batch().tags[0];
        assert_eq!(tag.1, r#"[{"path": "eval_results_table.json", "type": "table"}]"#);
        assert_eq!(trial.prompt_params, [("a".to_owned(), "1".to_owned())]);
    }
}
