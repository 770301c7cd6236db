//! What rten is not given, as it answers it wrongly.

use prost::Message;
use tract_onnx::pb::{self, tensor_proto::DataType};
use wisp_engine::{EngineKind, Graph};

use super::identity;

#[test]
fn what_rten_does_wrongly_is_refused() {
    let model = |op: &str, names: &[&str], initializer: Vec<pb::TensorProto>, mode: &[u8]| {
        let mut model = pb::ModelProto::decode(&identity(1, &[1, 1, 2, 2])[..]).unwrap();
        let graph = model.graph.as_mut().unwrap();
        graph.node[0].op_type = op.into();
        graph.node[0].input = names.iter().map(|name| (*name).to_owned()).collect();
        // 3 is STRING.
        let mode = pb::AttributeProto {
            name: "mode".into(),
            r#type: 3,
            s: mode.into(),
            ..Default::default()
        };
        graph.node[0].attribute = if mode.s.is_empty() { vec![] } else { vec![mode] };
        graph.initializer = initializer;
        Graph::load(&model.encode_to_vec(), EngineKind::Rten)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let tensor =
        |name: &str, data_type: DataType, raw_data: Vec<u8>, dims: &[i64]| pb::TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: data_type as i32,
            raw_data,
            ..Default::default()
        };
    let scales: Vec<u8> = [1f32; 4].iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let resized = |mode: &[u8]| {
        let scales = tensor("s", DataType::Float, scales.clone(), &[4]);
        model("Resize", &["x", "", "s"], vec![scales], mode)
    };
    let product_of = |kind: DataType, zero: u8, names: &[&str]| {
        let weights = tensor("w", kind, vec![1; 4], &[2, 2]);
        let zero = tensor("z", kind, vec![zero], &[]);
        model("MatMulInteger", names, vec![weights, zero], b"")
    };
    let product = |zero| product_of(DataType::Int8, zero, &["x", "w", "", "z"]);
    // What else they lack is not asked here.
    let is_trusted = |loaded: Result<(), String>| {
        !loaded.is_err_and(|reason| reason.starts_with("rten is not trusted with"))
    };
    for op in ["NonMaxSuppression", "ScatterElements", "Sign", "Softplus", "ArgMax"] {
        assert!(!is_trusted(model(op, &["x", "x", "x"], vec![], b"")), "{op}");
    }
    let lengths = ["x", "w", "w", "", "lengths"];
    assert!(is_trusted(model("LSTM", &lengths[..3], vec![], b"")));
    assert!(!is_trusted(model("LSTM", &lengths, vec![], b"")));
    let vector = |dims: &[i64]| tensor("w", DataType::Float, vec![0; 8], dims);
    assert!(is_trusted(model("MatMul", &["x", "w"], vec![vector(&[2, 1])], b"")));
    assert!(!is_trusted(model("MatMul", &["x", "w"], vec![vector(&[2])], b"")));
    // So large that it is left in the file.
    let long = tensor("w", DataType::Float, vec![0; 4096], &[1024]);
    assert!(!is_trusted(model("MatMul", &["x", "w"], vec![long], b"")));
    let table = |number: i64, count: usize| {
        let numbers = (0..count).flat_map(|_| number.to_le_bytes()).collect();
        tensor("w", DataType::Int64, numbers, &[count as i64])
    };
    for count in [1, 512] {
        let added = |number| model("Add", &["x", "w"], vec![table(number, count)], b"");
        assert!(is_trusted(added(1 << 30)) && !is_trusted(added(1 << 31)), "{count}");
    }
    let sliced = |names: &[&str]| is_trusted(model("Slice", names, vec![table(1 << 40, 1)], b""));
    assert!(
        sliced(&["x", "w", "w"]) && !sliced(&["w", "x", "x"]) && !sliced(&["x", "x", "x", "w"])
    );
    let made = |number: i64| {
        let mut model = pb::ModelProto::decode(&identity(1, &[1])[..]).unwrap();
        let graph = model.graph.as_mut().unwrap();
        // 2 is INT.
        let value = pb::AttributeProto {
            name: "value_int".into(),
            r#type: 2,
            i: number,
            ..Default::default()
        };
        let constant = pb::NodeProto {
            op_type: "Constant".into(),
            output: vec!["w".into()],
            attribute: vec![value],
            ..Default::default()
        };
        graph.node[0].op_type = "Add".into();
        graph.node[0].input.push("w".into());
        graph.node.insert(0, constant);
        let loaded = Graph::load(&model.encode_to_vec(), EngineKind::Rten);
        is_trusted(loaded.map(drop).map_err(|error| error.to_string()))
    };
    assert!(made(1 << 30) && !made(1 << 40));
    let inserted = |place: i64| {
        let place = tensor("p", DataType::Int64, place.to_le_bytes().to_vec(), &[]);
        model("SequenceInsert", &["x", "x", "p"], vec![place], b"")
    };
    assert!(is_trusted(resized(b"linear")) && is_trusted(product(0)) && is_trusted(inserted(0)));
    assert!(!is_trusted(resized(b"cubic")) && !is_trusted(product(3)) && !is_trusted(inserted(-1)));
    let large = vec![
        tensor("w", DataType::Int8, vec![1; 4096], &[64, 64]),
        tensor("z", DataType::Int8, vec![3], &[]),
    ];
    assert!(!is_trusted(model("MatMulInteger", &["x", "w", "", "z"], large, b"")));
    // Of weights that a node makes nothing is known: rten may find them constant.
    assert!(is_trusted(product_of(DataType::Uint8, 3, &["x", "w", "", "z"])));
    assert!(is_trusted(product_of(DataType::Int8, 3, &["x", "made"])));
    assert!(is_trusted(product_of(DataType::Int8, 0, &["x", "made", "", "z"])));
    assert!(!is_trusted(product_of(DataType::Int8, 3, &["x", "made", "", "z"])));
    assert!(!is_trusted(product_of(DataType::Int8, 0, &["x", "w", "", "made"])));
}
