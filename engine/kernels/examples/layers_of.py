"""Lists the convolutions and products of an ONNX model as lines for the bench; argument: model, then dims of the first input."""
import sys, onnx, numpy as np
from onnx import shape_inference, numpy_helper
m = onnx.load(sys.argv[1]); prefix = sys.argv[2]; dims = [int(x) for x in sys.argv[3].split(',')]
inp=[i for i in m.graph.input if i.name not in {x.name for x in m.graph.initializer}][0]
del inp.type.tensor_type.shape.dim[:]
for d in dims: inp.type.tensor_type.shape.dim.add().dim_value = d
del m.graph.value_info[:]
m = shape_inference.infer_shapes(m, data_prop=True)
shape = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in list(m.graph.value_info)+list(m.graph.input)+list(m.graph.output)}
w = {i.name: list(i.dims) for i in m.graph.initializer}
used = {}
for n in m.graph.node:
    for i in n.input: used.setdefault(i, []).append(n)
seen = {}
for n in m.graph.node:
    if n.op_type=='Constant': w[n.output[0]]=list(n.attribute[0].t.dims)
for n in m.graph.node:
    if n.op_type == 'Conv':
        a = {x.name: onnx.helper.get_attribute_value(x) for x in n.attribute}
        x, k = shape[n.input[0]], w[n.input[1]]
        p = a.get('pads', [0]*4); s = a.get('strides', [1,1]); g = a.get('group', 1)
        nxt = [u.op_type for u in used.get(n.output[0], [])]
        act = 'relu6' if nxt==['Clip'] else 'relu' if nxt==['Relu'] else 'none'
        if g > 1 and g == x[1]: continue
        # asymmetric padding becomes the padding of the end
        line = f"{x[0]} {x[1]} {x[2]} {x[3]} {k[0]} {k[2]} {k[3]} {s[0]} {s[1]} {max(p[0],p[2])} {max(p[1],p[3])} {g} {act}"
        seen[('conv',line)] = seen.get(('conv',line),0)+1
for (kind,line),c in seen.items():
    f = line.split()
    print(f"{kind} {prefix}:{f[1]}x{f[2]}x{f[3]}-{f[4]}k{f[5]}s{f[7]}x{c} {line}")
