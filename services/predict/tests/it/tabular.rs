use tonic::Code;
use verdict_api::predict::{
    EmbedRequest, Matrix, PredictRequest, PredictResponse, Row, Rows, Value, predict_request::Input, value::Kind,
};

use crate::world::{Predict, Registry, applications, floats, golden, number, text, told};

const MODEL: &str = "credit-risk@champion";

fn matrix(columns: u32, values: Vec<f32>) -> PredictRequest {
    PredictRequest { model: MODEL.to_owned(), input: Some(Input::Matrix(Matrix { columns, values })) }
}

fn rows(rows: Vec<Row>) -> PredictRequest {
    PredictRequest { model: MODEL.to_owned(), input: Some(Input::Rows(Rows { rows })) }
}

#[tokio::test(flavor = "multi_thread")]
async fn margins_are_those_of_xgboost_by_name_and_by_matrix() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let mut client = predict.client();

    let golden = golden("german_rows.json");
    let (margins, probabilities) = (floats(&golden["margin"]), floats(&golden["probability"]));
    let cells: Vec<_> = golden["rows"].as_array().unwrap().iter().flat_map(floats).collect();
    let close = |answer: &PredictResponse, most: usize| {
        for (row, (margin, probability)) in answer.margins.iter().zip(&answer.probabilities).enumerate() {
            assert!((margin - margins[row % most]).abs() < 2e-6 * margins[row % most].abs().max(1.0), "row {row}");
            assert!((probability - probabilities[row % most]).abs() < 2e-6, "row {row}");
        }
    };
    let one = client.predict(matrix(20, cells[..20].to_vec())).await.unwrap().into_inner();
    assert_eq!(one.margins.len(), 1);
    close(&one, 200);
    // Large enough to be cut into parts for several workers, and not a multiple of a part.
    let many: Vec<_> = cells.iter().copied().cycle().take(cells.len() * 51).collect();
    let answer = client.predict(matrix(20, many)).await.unwrap().into_inner();
    assert_eq!(answer.margins.len(), 10_200);
    close(&answer, 200);

    let named = applications().into_iter().map(|features| Row { features }).collect();
    let answer = client.predict(rows(named)).await.unwrap().into_inner();
    assert_eq!((answer.margins.len(), answer.served_by.unwrap().version), (10, 1));
    // As many as are laid out off the async threads.
    let named = applications().into_iter().cycle().take(500).map(|features| Row { features }).collect();
    let many = client.predict(rows(named)).await.unwrap().into_inner();
    assert_eq!(many.margins.len(), 500);
    assert!(many.margins.chunks(10).all(|margins| margins == answer.margins));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rows_are_refused_field_by_field() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let mut client = predict.client();

    let good = || Row { features: applications().remove(0) };
    let changed = |name: &str, value: Option<Value>| {
        let mut row = good();
        match value {
            Some(value) => row.features.insert(name.to_owned(), value),
            None => row.features.remove(name),
        };
        row
    };
    let truth = Value { kind: Some(Kind::Boolean(true)) };
    for (row, field) in [
        (changed("age_in_years", None), "age_in_years"),
        (changed("age_in_years", Some(Value { kind: None })), "age_in_years"),
        (changed("age_in_years", Some(text("67"))), "age_in_years"),
        (changed("age_in_years", Some(number(67.5))), "age_in_years"),
        (changed("credit_amount", Some(truth)), "credit_amount"),
        (changed("credit_amount", Some(number(f64::NAN))), "credit_amount"),
        (changed("purpose", Some(text("yacht"))), "purpose"),
        (changed("income", Some(number(1.0))), "income"),
    ] {
        let refused = client.predict(rows(vec![good(), row])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(told(&refused), ("INVALID_REQUEST".to_owned(), vec![format!("rows[1].features.{field}")]));
    }
    for (request, field) in [
        (rows(Vec::new()), "rows"),
        (rows(vec![Row::default(); 10_001]), "rows"),
        (PredictRequest { model: MODEL.to_owned(), input: None }, "input"),
        (matrix(19, vec![0.0; 19]), "matrix.columns"),
        (matrix(20, vec![0.0; 30]), "matrix.values"),
        (PredictRequest { model: "credit-risk".to_owned(), input: None }, "model"),
    ] {
        assert_eq!(told(&client.predict(request).await.unwrap_err()).1, [field]);
    }

    let unknown = PredictRequest { model: "fraud@champion".to_owned(), ..rows(vec![good()]) };
    let refused = client.predict(unknown).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::NotFound, "MODEL_NOT_SERVED"));
    assert!(refused.message().contains("`credit-risk@champion`"), "{}", refused.message());
    let wrong = EmbedRequest { model: MODEL.to_owned(), inputs: vec!["x".to_owned()], ..EmbedRequest::default() };
    assert_eq!(told(&client.embed(wrong).await.unwrap_err()).0, "WRONG_TASK");
    let numbered = PredictRequest { model: "credit-risk/1".to_owned(), ..rows(vec![good()]) };
    let served = client.predict(numbered).await.unwrap().into_inner().served_by.unwrap();
    assert_eq!((served.version, served.alias.as_str()), (1, ""));
    predict.stop().await;
}
