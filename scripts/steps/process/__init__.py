"""The process of a step, and the job control around it.

On a terminal a step is a job, as in a shell. `Child` makes a process group for it, lends the terminal to that group
(`Terminal`), waits for the process with WUNTRACED, and takes the terminal back when it ends or stops.

- **Ctrl-C** goes to the group in the foreground, so this process would not learn of it. A `Sentinel`, forked before
  the step, leads the group and sends SIGURG here for each SIGINT. It also makes the group known to the terminal before
  the step can touch the terminal: nobody gets SIGTTOU in between.
- **Ctrl-Z** stops the group; `Child` sees the stop, takes the terminal back and stops this job as well (`suspend`), so
  that the user's shell gets its prompt. SIGCONT lends the terminal again.
- **A pipeline** (`ai-cli ... | less`) shares one group: the step stays in it, as another program may need the keyboard.
- **Ending** a step (timeout, second Ctrl-C, SIGTERM, SIGHUP) goes through the process table (`processes.Family`), as
  descendants may have left the group: SIGTERM, a grace period, SIGKILL.
- **Signals to this process** are handled once for a whole run (`signals.Switchboard`); each step connects
  its own handlers.
- **A transcript** needs a copy of the output: the step gets a session and a pseudo-terminal of its own, and `relay`
  copies both ways in a thread.
"""
