"""Profiles a whole model in ONNX Runtime, one thread; prints the minimum of each node. Arguments: model, dims."""
import sys, json, numpy as np, onnxruntime as ort, collections
o=ort.SessionOptions(); o.intra_op_num_threads=1; o.enable_profiling=True; o.profile_file_prefix='/tmp/h/ortprof'
s=ort.InferenceSession(sys.argv[1],o,providers=['CPUExecutionProvider'])
dims=[int(x) for x in sys.argv[2].split(',')]
x={s.get_inputs()[0].name: np.random.rand(*dims).astype('f')}
import time
best=9
for _ in range(30):
    a=time.perf_counter(); s.run(None,x); best=min(best,time.perf_counter()-a)
f=s.end_profiling(); ev=json.load(open(f))
d=collections.OrderedDict(); sh={}
for e in ev:
    if e.get('cat')=='Node' and e['name'].endswith('_kernel_time'):
        k=e['name']; d[k]=min(d.get(k,1e9),e['dur']); sh[k]=(e['args'].get('op_name'),e['args'].get('input_type_shape'))
tot=collections.Counter()
for k,v in d.items():
    op,i=sh[k]; print(v,op,[list(x.values())[0] for x in i][:2]); tot[op]+=v
print('whole',best*1e3,'ms; sum of minima',sum(d.values()),dict(tot))
