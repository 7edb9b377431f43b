//! Rows, by name or as a matrix.

use std::collections::HashMap;

use verdict_api::predict as api;

use crate::{
    decision::Value,
    error::{Error, Result},
    schema::{Problems, Schema},
};

/// Most rows by name in one request: each costs far more than a row of a matrix.
pub const MAX_ROWS: usize = 10_000;

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
