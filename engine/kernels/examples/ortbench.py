"""One-node models of the same layers in ONNX Runtime, one thread; prints like the bench. Arguments: layers file, rounds."""
import sys, time, numpy as np, onnx, onnxruntime as ort
from onnx import helper as h, numpy_helper as nh, TensorProto as T
def act(kind, src, nodes, inits):
    if kind=='relu': nodes.append(h.make_node('Relu',[src],['y']))
    elif kind=='relu6':
        inits += [nh.from_array(np.float32(0),'lo'), nh.from_array(np.float32(6),'hi')]
        nodes.append(h.make_node('Clip',[src,'lo','hi'],['y']))
    elif kind=='hswish': nodes.append(h.make_node('HardSwish',[src],['y']))
    else: nodes[-1].output[0]='y'
def session(nodes, ins, inits):
    g=h.make_graph(nodes,'g',[h.make_tensor_value_info(n,T.FLOAT,list(a.shape)) for n,a in ins.items()],[h.make_tensor_value_info('y',T.FLOAT,None)],inits)
    m=h.make_model(g,opset_imports=[h.make_opsetid('',17)]); m.ir_version=9
    o=ort.SessionOptions(); o.intra_op_num_threads=1; o.inter_op_num_threads=1
    return ort.InferenceSession(m.SerializeToString(),o,providers=['CPUExecutionProvider'])
jobs=[]
for line in open(sys.argv[1]):
    f=line.split()
    if not f: continue
    kind,name=f[:2]; n=[int(x) for x in f[2:] if x.lstrip('-').isdigit()]; a=f[-1]
    rnd=np.random.rand; nodes=[]; 
    if kind=='conv':
        x=rnd(*n[:4]).astype('f')-.5; w=(rnd(n[4],n[1]//n[11],n[5],n[6])-.5).astype('f'); b=rnd(n[4]).astype('f')
        inits=[nh.from_array(w,'w'),nh.from_array(b,'b')]
        nodes.append(h.make_node('Conv',['x','w','b'],['c'],kernel_shape=n[5:7],strides=n[7:9],pads=[n[9],n[10],n[9],n[10]],group=n[11]))
        act(a,'c',nodes,inits); ins={'x':x}
    elif kind=='linear':
        x=rnd(n[0],n[1]).astype('f')-.5; inits=[nh.from_array((rnd(n[1],n[2])-.5).astype('f'),'w'),nh.from_array(rnd(n[2]).astype('f'),'b')]
        nodes.append(h.make_node('Gemm',['x','w','b'],['c'])); act(a,'c',nodes,inits); ins={'x':x}
    else:
        ins={'x':rnd(n[0],n[1],n[2]).astype('f'),'z':rnd(n[0],n[2],n[3]).astype('f')}; inits=[]
        nodes.append(h.make_node('MatMul',['x','z'],['y']))
    s=session(nodes,ins,inits); bind=s.io_binding()
    for k,v in ins.items(): bind.bind_cpu_input(k,v)
    y=s.run(None,ins)[0]; out=ort.OrtValue.ortvalue_from_numpy(y); bind.bind_ortvalue_output('y',out)
    jobs.append([name,s,bind,1e9])
t=time.perf_counter
for _ in range(int(sys.argv[2])):
    for j in jobs:
        j[1].run_with_iobinding(j[2]); a=t(); j[1].run_with_iobinding(j[2]); j[3]=min(j[3],t()-a)
for j in jobs: print(j[0], f"{j[3]*1e6:.1f} us")
