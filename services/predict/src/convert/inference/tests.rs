use proptest::prelude::*;
use tonic::{Code, Status};
use verdict_api::inference::{
    InferTensorContents, infer_parameter::ParameterChoice, model_infer_request::InferRequestedOutputTensor,
};
use verdict_chassis::status;

use super::*;
use crate::engine::tensor::Data;

/// One tensor of every type, with what breaks: extremes, NaN, infinities, the negative zero, an empty text.
fn every_type() -> Vec<Data> {
    vec![
        Data::Bool(vec![true, false]),
        Data::Uint8(vec![0, u8::MAX]),
        Data::Uint16(vec![0, u16::MAX]),
        Data::Uint32(vec![0, u32::MAX]),
        Data::Uint64(vec![0, u64::MAX]),
        Data::Int8(vec![i8::MIN, i8::MAX]),
        Data::Int16(vec![i16::MIN, i16::MAX]),
        Data::Int32(vec![i32::MIN, i32::MAX]),
        Data::Int64(vec![i64::MIN, i64::MAX]),
        Data::Fp16(vec![0x7e01, 0xfc00]),
        Data::Bf16(vec![0x7fc1, 0x8000]),
        Data::Fp32(vec![f32::from_bits(0x7fc0_1234), -0.0]),
        Data::Fp64(vec![f64::from_bits(0x7ff8_0000_0000_4321), f64::NEG_INFINITY]),
        Data::Bytes(vec![Vec::new(), vec![0xff, 0, b'a']]),
    ]
}

fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: "x".to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        contents,
        ..InferInputTensor::default()
    }
}

fn request(inputs: Vec<InferInputTensor>, raw_input_contents: Vec<Vec<u8>>) -> ModelInferRequest {
    ModelInferRequest { model_name: "m".to_owned(), inputs, raw_input_contents, ..ModelInferRequest::default() }
}

fn read(request: ModelInferRequest) -> Result<Infer> {
    infer(request, Admission::default())
}

/// Returns reason and field of a refusal.
fn told(request: ModelInferRequest) -> (String, String) {
    let status = Status::from(read(request).expect_err("refused"));
    assert_eq!(status.code(), Code::InvalidArgument);
    let field = status::fields(&status).remove(0).field;
    (status::reason(&status).unwrap(), field)
}

fn bits(data: Data) -> Vec<u8> {
    raw::write(data)
}

#[test]
fn every_type_comes_through_raw_to_the_bit() {
    assert_eq!(every_type().iter().map(Data::datatype).collect::<Vec<_>>(), Datatype::ALL);
    for data in every_type() {
        let datatype = data.datatype();
        let bytes = bits(data);
        let read = read(request(vec![input(datatype.name(), &[2, 1], None)], vec![bytes.clone()])).unwrap();
        let tensor = read.asked.inputs.into_iter().next().unwrap();
        assert_eq!((tensor.data.datatype(), &tensor.shape[..], tensor.data.len()), (datatype, &[2, 1][..], 2));
        assert_eq!(bits(tensor.data), bytes, "{}", datatype.name());
        assert!(read.is_raw);
    }
}

#[test]
fn every_type_with_a_typed_field_comes_through_it_to_the_bit() {
    for data in every_type() {
        let (datatype, bytes) = (data.datatype(), bits(data.clone()));
        let typed = request(vec![input(datatype.name(), &[2], Some(contents::write(data)))], Vec::new());
        if contents::is_raw_only(datatype) {
            assert_eq!(told(typed), ("WRONG_CONTENTS".to_owned(), "inputs[0].contents".to_owned()));
            continue;
        }
        let read = read(typed).unwrap();
        assert!(!read.is_raw);
        let tensor = read.asked.inputs.into_iter().next().unwrap();
        assert_eq!((tensor.data.datatype(), bits(tensor.data)), (datatype, bytes));
    }
}

#[test]
fn raw_contents_off_by_one_byte_are_refused_for_every_type() {
    for data in every_type() {
        let (name, bytes) = (data.datatype().name(), bits(data));
        let (mut more, mut less) = (bytes.clone(), bytes);
        more.push(0);
        less.pop();
        for wrong in [more, less, Vec::new()] {
            let refused = told(request(vec![input(name, &[2], None)], vec![wrong]));
            assert_eq!(refused, ("WRONG_CONTENTS".to_owned(), "raw_input_contents[0]".to_owned()), "{name}");
        }
    }
}

#[test]
fn shapes_that_no_tensor_has_are_refused_without_an_allocation() {
    for shape in [&[-1_i64][..], &[2, i64::MIN], &[i64::MAX, 3], &[1 << 32, 1 << 32], &[i64::MAX; 9]] {
        let raw = told(request(vec![input("BYTES", shape, None)], vec![Vec::new()]));
        assert_eq!(raw, ("WRONG_SHAPE".to_owned(), "inputs[0].shape".to_owned()), "{shape:?}");
        let typed = told(request(vec![input("FP32", shape, Some(InferTensorContents::default()))], Vec::new()));
        assert_eq!(typed, raw, "{shape:?}");
    }
    // Countable, and far more than there is.
    for name in ["FP32", "BYTES", "BOOL", "INT64"] {
        let refused = told(request(vec![input(name, &[i64::from(u32::MAX), 1 << 20], None)], vec![vec![0; 8]]));
        assert_eq!(refused, ("WRONG_CONTENTS".to_owned(), "raw_input_contents[0]".to_owned()), "{name}");
    }
}

#[test]
fn empty_tensors_are_read_as_such() {
    for data in every_type() {
        let datatype = data.datatype();
        let read = read(request(vec![input(datatype.name(), &[0, 5], None)], vec![Vec::new()])).unwrap();
        assert!(read.asked.inputs[0].data.is_empty());
    }
}

#[test]
fn texts_with_wrong_lengths_are_refused() {
    let one = |bytes: &[u8]| told(request(vec![input("BYTES", &[1], None)], vec![bytes.to_vec()])).0;
    for wrong in [
        &[1, 0, 0][..],
        &[2, 0, 0, 0, b'a'],
        &[255, 255, 255, 255, b'a'],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 9],
        &[],
    ] {
        assert_eq!(one(wrong), "WRONG_CONTENTS", "{wrong:?}");
    }
}

#[test]
fn values_that_their_type_cannot_hold_are_refused() {
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.to_vec(), ..Default::default() };
    let uints = |values: &[u32]| InferTensorContents { uint_contents: values.to_vec(), ..Default::default() };
    for (name, contents) in [
        ("INT8", ints(&[300])),
        ("INT16", ints(&[-32_769])),
        ("UINT8", uints(&[256])),
        ("UINT16", uints(&[65_536])),
        ("FP32", ints(&[1])),
        ("INT32", InferTensorContents { int64_contents: vec![1], ..ints(&[1]) }),
        ("INT32", ints(&[1, 2])),
        ("FP64", InferTensorContents::default()),
        ("FP16", InferTensorContents { fp32_contents: vec![1.0], ..Default::default() }),
    ] {
        let refused = told(request(vec![input(name, &[1], Some(contents))], Vec::new()));
        assert_eq!(refused, ("WRONG_CONTENTS".to_owned(), "inputs[0].contents".to_owned()), "{name}");
    }
    let refused = told(request(vec![input("BOOL", &[2], None)], vec![vec![1, 2]]));
    assert_eq!(refused, ("WRONG_CONTENTS".to_owned(), "raw_input_contents[0]".to_owned()));
}

#[test]
fn raw_and_typed_do_not_mix_and_raw_is_complete() {
    let some = || Some(InferTensorContents { fp32_contents: vec![1.0], ..Default::default() });
    let mixed = request(vec![input("FP32", &[1], None), input("FP32", &[1], some())], vec![vec![0; 4], vec![0; 4]]);
    assert_eq!(told(mixed), ("RAW_AND_TYPED".to_owned(), "inputs[1].contents".to_owned()));
    for count in [1, 3] {
        let inputs = vec![input("FP32", &[1], None), input("FP32", &[1], None)];
        let refused = told(request(inputs, vec![vec![0; 4]; count]));
        assert_eq!(refused, ("RAW_COUNT".to_owned(), "raw_input_contents".to_owned()));
    }
    let refused = told(request(vec![input("FLOAT", &[1], some())], Vec::new()));
    assert_eq!(refused, ("DATATYPE_UNKNOWN".to_owned(), "inputs[0].datatype".to_owned()));
}

#[test]
fn reserved_parameters_are_taken_in_every_form_clients_send() {
    let with = |name: &str, choice: Option<ParameterChoice>| {
        let parameters = HashMap::from([(name.to_owned(), InferParameter { parameter_choice: choice })]);
        ModelInferRequest { parameters, ..request(Vec::new(), Vec::new()) }
    };
    let int = |number| Some(ParameterChoice::Int64Param(number));
    let uint = |number| Some(ParameterChoice::Uint64Param(number));
    let text = |text: &str| Some(ParameterChoice::StringParam(text.to_owned()));
    for choice in [int(5000), uint(5000), text("5000")] {
        let deadline = read(with("timeout", choice)).unwrap().asked.admission.deadline.unwrap();
        assert!(deadline <= Instant::now() + Duration::from_millis(5));
    }
    assert!(read(with("timeout", int(0))).unwrap().asked.admission.deadline.is_none());
    for (level, priority) in [(0, Priority::Interactive), (1, Priority::Interactive), (2, Priority::Batch)] {
        assert_eq!(read(with("priority", uint(level))).unwrap().asked.admission.priority, priority);
        assert_eq!(read(with("priority", int(level as i64))).unwrap().asked.admission.priority, priority);
    }
    assert!(!read(with("binary_data_output", Some(ParameterChoice::BoolParam(false)))).unwrap().is_raw);
    assert!(read(with("sequence_id", uint(0))).is_ok() && read(with("sequence_id", text(""))).is_ok());
    assert!(read(with("my_own", Some(ParameterChoice::DoubleParam(0.5)))).is_ok());
    for (name, choice) in [
        ("timeout", int(-1)),
        ("timeout", None),
        ("priority", text("high")),
        ("binary_data_output", int(1)),
        ("sequence_id", uint(7)),
        ("sequence_id", text("a")),
        ("sequence_start", Some(ParameterChoice::BoolParam(true))),
    ] {
        assert_eq!(told(with(name, choice)), ("WRONG_PARAMETER".to_owned(), format!("parameters.{name}")));
    }
    let mut shared = input("FP32", &[1], None);
    shared.parameters.insert("shared_memory_region".to_owned(), InferParameter::default());
    let refused = told(request(vec![shared], Vec::new()));
    assert_eq!(refused.1, "inputs[0].parameters.shared_memory_region");
}

fn any_contents() -> impl Strategy<Value = InferTensorContents> {
    let few = 0..3_usize;
    (
        prop::collection::vec(any::<bool>(), few.clone()),
        prop::collection::vec(any::<i32>(), few.clone()),
        prop::collection::vec(any::<i64>(), few.clone()),
        prop::collection::vec(any::<u32>(), few.clone()),
        prop::collection::vec(any::<u64>(), few.clone()),
        prop::collection::vec(any::<f32>(), few.clone()),
        prop::collection::vec(any::<f64>(), few.clone()),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), few),
    )
        .prop_map(|(bools, ints, longs, uints, ulongs, floats, doubles, texts)| InferTensorContents {
            bool_contents: bools,
            int_contents: ints,
            int64_contents: longs,
            uint_contents: uints,
            uint64_contents: ulongs,
            fp32_contents: floats,
            fp64_contents: doubles,
            bytes_contents: texts,
        })
}

/// Mostly what nearly fits, as what is all wrong is refused at once.
pub(crate) fn any_request(names: &'static [&'static str]) -> impl Strategy<Value = ModelInferRequest> {
    let datatype = prop_oneof![
        9 => prop::sample::select(Datatype::ALL.to_vec()).prop_map(|datatype| datatype.name().to_owned()),
        1 => any::<String>(),
    ];
    let length = prop_oneof![8 => 0..4_i64, 1 => any::<i64>(), 1 => Just(i64::MAX)];
    let tensor = (
        prop::sample::select(names.to_vec()),
        datatype,
        prop::collection::vec(length, 0..4),
        prop::option::of(any_contents()),
    );
    let tensor = tensor.prop_map(|(name, datatype, shape, contents)| InferInputTensor {
        name: name.to_owned(),
        datatype,
        shape,
        contents,
        ..InferInputTensor::default()
    });
    let raw = prop_oneof![
        4 => Just(Vec::new()),
        6 => prop::collection::vec(prop::collection::vec(prop_oneof![3 => 0..6_u8, 1 => any::<u8>()], 0..40), 0..4),
    ];
    let output = prop::sample::select(names.to_vec())
        .prop_map(|name| InferRequestedOutputTensor { name: name.to_owned(), ..Default::default() });
    (prop::collection::vec(tensor, 0..4), raw, prop::collection::vec(output, 0..3)).prop_map(
        |(inputs, raw_input_contents, outputs)| ModelInferRequest { outputs, ..request(inputs, raw_input_contents) },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_sent_is_read_or_refused(sent in any_request(&["x", "y", ""])) {
        match read(sent.clone()) {
            Ok(read) => {
                for tensor in &read.asked.inputs {
                    prop_assert_eq!(tensor.shape.iter().product::<usize>(), tensor.data.len());
                }
            }
            Err(error) => {
                let status = Status::from(error);
                prop_assert_eq!(status.code(), Code::InvalidArgument);
                prop_assert!(!status::fields(&status).is_empty());
            }
        }
    }

    #[test]
    fn a_message_with_any_byte_changed_is_read_or_refused(
        sent in any_request(&["x"]), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = prost::Message::encode_to_vec(&sent);
        let place = at.index(bytes.len());
        bytes[place] = byte;
        if let Ok(changed) = <ModelInferRequest as prost::Message>::decode(&bytes[..]) {
            let _outcome = read(changed);
        }
    }

    #[test]
    fn texts_written_raw_are_read_back(texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..9)) {
        let bytes = raw::write(Data::Bytes(texts.clone()));
        prop_assert_eq!(raw::read(Datatype::Bytes, texts.len(), bytes), Ok(Data::Bytes(texts)));
    }
}
