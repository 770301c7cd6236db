"""Alternates our bench and ONNX Runtime's over a file of layers; prints minima and ratios. Arguments: file, turns, rounds."""
import subprocess, sys, re
f, turns, rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3]
best=[{},{}]
for _ in range(turns):
    for i,cmd in enumerate([['/tmp/h/kt1/release/examples/bench',f,rounds],['/tmp/h/venv/bin/python','/tmp/h/ortbench.py',f,rounds]]):
        for l in subprocess.run(cmd,capture_output=True,text=True).stdout.splitlines():
            n,t=l.split()[:2]; best[i][n]=min(best[i].get(n,1e9),float(t))
tot=[0,0]
for n in best[0]:
    a,b=best[0][n],best[1].get(n,float('nan')); m=int(re.search(r'x(\d+)$',n).group(1))
    tot[0]+=a*m; tot[1]+=b*m; print(f"{n:40s} ours {a:8.1f} ort {b:8.1f} ratio {a/b:.2f}")
print(f"TOTAL {f}: ours {tot[0]/1e3:.2f} ms ort {tot[1]/1e3:.2f} ms ratio {tot[0]/tot[1]:.3f}")
