package main

import (
	"bufio"
	"fmt"
	"strings"
)

type keysCmd struct {
	Ceremony   keysCeremonyCmd   `cmd:"" help:"Make the keys of an epoch and bring them to every server's tokens."`
	Transcript keysTranscriptCmd `cmd:"" help:"Check and show the transcript of a ceremony."`
}

// confirm has a person type a word. yes stands for it, for scripts.
func confirm(s streams, yes bool, word, format string, args ...any) error {
	if yes {
		return nil
	}
	fmt.Fprintf(s.err, format+"\nType %s to go on: ", append(args, word)...)
	line, err := bufio.NewReader(s.in).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(s.err)
		return usage("nobody typed %s, and nothing was done: say --yes in a script", word)
	}
	if strings.TrimSpace(line) != word {
		return usage("%s was not typed, and nothing was done", word)
	}
	return nil
}
