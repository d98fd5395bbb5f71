#!/bin/sh
# Who may use what, as on Leonardo: a research account that may also run at low priority for free, and one that pays.
# qos_lowprio: a normal job takes its node 30 s after the warning (gracetime).
set -eu
sacctmgr -i add cluster leonardo
sacctmgr -i add qos qos_lowprio priority=0 gracetime=30
sacctmgr -i modify qos normal set preempt=qos_lowprio priority=1000
sacctmgr -i add account INF24_lhc_2,PAYING cluster=leonardo
sacctmgr -i add user leo account=INF24_lhc_2 qos=normal,qos_lowprio defaultqos=normal
sacctmgr -i add user leo2 account=PAYING qos=normal defaultqos=normal
