//! Rows, by name or as a matrix.

use std::collections::HashMap;

use tonic::Code;
use verdict_api::predict as api;
use verdict_inference::trees::{Kind, TabularModel};

use crate::{
    convert::number,
    decision::Value,
    error::{Error, Result},
    schema::{Problems, Schema},
    tabular::{Explained, Tabular},
};

/// Most rows by name in one request: each costs far more than a row of a matrix.
pub const MAX_ROWS: usize = 10_000;
/// Most numbers that one request has computed to explain its rows, and most that it is answered with.
const MAX_COMPUTED: usize = 32 << 20;
const MAX_SHARES: usize = 4 << 20;

/// Returns how many bytes of cells a request asks for, which says whether it is laid out in place.
pub fn cell_bytes(input: Option<&api::predict_request::Input>) -> usize {
    use api::predict_request::Input;
    let cells = match input {
        None => 0,
        Some(Input::Matrix(matrix)) => matrix.values.len(),
        Some(Input::Rows(rows)) => rows.rows.iter().map(|row| row.features.len()).sum(),
    };
    cells * size_of::<f32>()
}

/// Lays the rows of a request out as the model's columns, row-major.
pub fn cells(input: Option<api::predict_request::Input>, schema: &Schema) -> Result<Vec<f32>> {
    use api::predict_request::Input;
    match input {
        None => Err(Error::field("input", "is missing: `rows` or `matrix` is expected")),
        Some(Input::Matrix(api::Matrix { columns, values })) => {
            schema.check_matrix(columns as usize, &values).into_result().map_err(Error::Invalid)?;
            Ok(values)
        }
        Some(Input::Rows(api::Rows { rows })) => {
            if rows.is_empty() {
                return Err(Error::field("rows", "is empty: at least one row is expected"));
            }
            if rows.len() > MAX_ROWS {
                let problem = format!("has {} rows: at most {MAX_ROWS} by name, more as `matrix`", rows.len());
                return Err(Error::field("rows", problem));
            }
            let mut cells = Vec::with_capacity(rows.len() * schema.inputs().len());
            let mut problems = Problems::default();
            for (index, api::Row { features }) in rows.into_iter().enumerate() {
                let row = values(features);
                let named = row.iter().map(|(name, value)| (name.as_str(), value.as_ref()));
                schema.lay_out(named, &|| format!("rows[{index}].features"), &mut cells, &mut problems);
                if problems.is_full() {
                    break;
                }
            }
            problems.into_result().map_err(Error::Invalid)?;
            Ok(cells)
        }
    }
}

/// Takes the rows of an explanation as those of a prediction.
pub fn explained_input(input: api::explain_request::Input) -> api::predict_request::Input {
    match input {
        api::explain_request::Input::Rows(rows) => api::predict_request::Input::Rows(rows),
        api::explain_request::Input::Matrix(matrix) => api::predict_request::Input::Matrix(matrix),
    }
}

/// Refuses explanations larger than an answer should be; `most` are asked for each row and output.
pub fn check_shares(rows: usize, outputs: usize, columns: usize, most: usize) -> Result<()> {
    let per_column = rows.saturating_mul(outputs);
    if per_column.saturating_mul(columns) > MAX_COMPUTED || per_column.saturating_mul(most) > MAX_SHARES {
        let problem = format!(
            "has {rows} rows of {outputs} outputs and {columns} columns: at most {MAX_COMPUTED} contributions in one \
             request, {MAX_SHARES} with `top_k`"
        );
        return Err(Error::field("input", problem));
    }
    Ok(())
}

/// Answers margins: as probabilities where the model classifies, as values where it does not.
pub fn scored(model: &TabularModel, mut margins: Vec<f32>) -> api::PredictResponse {
    let outputs = model.num_outputs();
    let mut answers = margins.clone();
    model.transform(&mut answers);
    let mut errors = Vec::new();
    for (row, (margins, answers)) in margins.chunks_mut(outputs).zip(answers.chunks_mut(outputs)).enumerate() {
        if margins.iter().chain(answers.iter()).all(|number| number.is_finite()) {
            continue;
        }
        margins.fill(f32::NAN);
        answers.fill(f32::NAN);
        errors.push(not_finite(row));
    }
    let (probabilities, values) = match model.kind() {
        Kind::BinaryClassification | Kind::MulticlassClassification => (answers, Vec::new()),
        Kind::Regression | Kind::Ranking => (Vec::new(), answers),
    };
    api::PredictResponse {
        probabilities,
        margins,
        served_by: None,
        outputs: number(outputs),
        classes: model.classes().to_vec(),
        values,
        errors,
    }
}

/// Answers explanations: for each row and output the `most` greatest contributions.
pub fn explained(tabular: &Tabular, explained: &Explained, most: usize) -> api::ExplainResponse {
    let (model, inputs) = (tabular.model(), tabular.schema.inputs());
    let (outputs, columns) = (model.num_outputs(), inputs.len());
    let Explained { margins, shap } = explained;
    let (mut explanations, mut errors) = (Vec::with_capacity(margins.len()), Vec::new());
    for (row, (margins, shap)) in margins.chunks(outputs).zip(shap.chunks(outputs * (columns + 1))).enumerate() {
        if !margins.iter().chain(shap).all(|number| number.is_finite()) {
            errors.push(not_finite(row));
            continue;
        }
        for (output, (margin, shap)) in margins.iter().zip(shap.chunks(columns + 1)).enumerate() {
            let mut order: Vec<usize> = (0..columns).collect();
            // Stable: equal contributions keep the order of the columns.
            order.sort_by(|a, b| shap[*b].abs().total_cmp(&shap[*a].abs()));
            order.truncate(most);
            explanations.push(api::Explanation {
                row: number(row),
                output: number(output),
                margin: *margin,
                base_value: shap[columns],
                contributions: order.iter().map(|column| shap[*column]).collect(),
                features: order.into_iter().map(number).collect(),
            });
        }
    }
    api::ExplainResponse {
        explanations,
        features: inputs.iter().map(|input| input.name.clone()).collect(),
        classes: model.classes().to_vec(),
        outputs: number(outputs),
        served_by: None,
        errors,
    }
}

fn not_finite(row: usize) -> api::RowError {
    let message =
        "the model's answer is not a finite number: a value is missing that it needs, or too large".to_owned();
    let error = api::ItemError { code: Code::OutOfRange.into(), reason: "NOT_FINITE".to_owned(), message };
    api::RowError { row: number(row), error: Some(error) }
}

/// Takes features as they are: `None` for a missing value.
pub(crate) fn values(features: HashMap<String, api::Value>) -> Vec<(String, Option<Value>)> {
    use api::value::Kind;
    let value = |api::Value { kind }| {
        kind.map(|kind| match kind {
            Kind::Number(number) => Value::Number(number),
            Kind::Text(text) => Value::Text(text),
            Kind::Boolean(truth) => Value::Boolean(truth),
        })
    };
    features.into_iter().map(|(name, wire)| (name, value(wire))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_rows_and_too_many_problems_end_the_work_early() {
        let schema = Schema::new(Vec::new(), 2, &[]).unwrap();
        let refused = |rows: usize| {
            let wrong = HashMap::from([("x".to_owned(), api::Value::default())]);
            let rows = vec![api::Row { features: wrong }; rows];
            match cells(Some(api::predict_request::Input::Rows(api::Rows { rows })), &schema) {
                Err(Error::Invalid(fields)) => fields,
                other => panic!("not refused: {other:?}"),
            }
        };
        let many = refused(MAX_ROWS + 1);
        assert_eq!((many.len(), many[0].field.as_str()), (1, "rows"));
        assert!(many[0].problem.contains("at most 10000 by name, more as `matrix`"), "{}", many[0].problem);
        let wrong = refused(MAX_ROWS);
        assert_eq!(wrong[9].field, "rows[9].features.x");
        assert!(wrong[9].problem.ends_with("(and at least 1 more)"), "{}", wrong[9].problem);
    }
}
