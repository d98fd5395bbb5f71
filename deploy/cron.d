# One cycle every two minutes, where no service may run: /etc/cron.d/htcebridge, as root. cron.d has the user in each line.
# Take the # away, and put the user whose Slurm account the pilots use in leo's place. What it says goes to the journal.
PATH=/usr/local/bin:/usr/bin:/bin
#WORK=/leonardo_work/INF24_lhc_2
#*/2 * * * * leo  htcebridge -q pressure once 2>&1 | logger -t htcebridge
