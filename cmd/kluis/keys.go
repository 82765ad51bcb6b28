package main

import (
	"bufio"
	"fmt"
	"log/slog"
	"strings"
)

type keysCmd struct {
	Status         keysStatusCmd         `cmd:"" help:"Show every key, the servers that hold it, and the control feed."`
	Feed           keysFeedCmd           `cmd:"" help:"Run the daemon that keeps the control feed alive, until SIGTERM."`
	Ceremony       keysCeremonyCmd       `cmd:"" help:"Make the keys of an epoch and bring them to every server's tokens."`
	Transcript     keysTranscriptCmd     `cmd:"" help:"Check and show the transcript of a ceremony."`
	RotateKEK      keysRotateKEKCmd      `cmd:"" name:"rotate-kek" help:"Make the newest epoch active and rewrap all data keys under it."`
	RotateDataKeys keysRotateDataKeysCmd `cmd:"" name:"rotate-data-keys" help:"Seal readings again under new data keys."`
	Erase          keysEraseCmd          `cmd:"" help:"Destroy the data keys of a metering point, an occupancy, or all past their retention."`
	Reapply        keysReapplyCmd        `cmd:"" help:"After a restore of the database: erase again what was erased."`
	DestroyKEK     keysDestroyKEKCmd     `cmd:"" name:"destroy-kek" help:"Give up the KEK of an old epoch."`
	Facts          keysFactsCmd          `cmd:"" help:"Compare legal files and supplier records with the versions that the control feed names."`
}

// confirm has a person type an answer, asked for by what. yes stands for it, for
// scripts. Neither the question nor an error repeats the answer.
func confirm(s streams, yes bool, answer, what, format string, args ...any) error {
	if yes {
		return nil
	}
	fmt.Fprintf(s.err, format+"\nType %s to go on: ", append(args, what)...)
	line, err := bufio.NewReader(s.in).ReadString('\n')
	switch {
	case err != nil && line == "":
		fmt.Fprintln(s.err)
		return usage("nobody typed %s, and nothing was done: say --yes in a script", what)
	case strings.TrimSpace(line) != answer:
		return usage("that is not %s, and nothing was done", what)
	}
	return nil
}

// commandLog is for what a package has to tell the operator beside its result.
func commandLog(s streams) *slog.Logger {
	return slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
