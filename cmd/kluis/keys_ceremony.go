package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kluis/cmd/kluis/ceremony"
	"kluis/cmd/kluis/demo"
)

type keysCeremonyCmd struct {
	Config       []string `type:"existingfile" placeholder:"SERVER.yaml" xor:"servers" help:"Configuration of a cryptoserver whose HSM partitions this machine reaches; once per server, the one that makes the keys first."`
	State        string   `type:"path" placeholder:"DIR" xor:"servers" help:"State folder of the demo: its servers, PINs and folder."`
	Epoch        uint32   `default:"1" placeholder:"N" help:"Epoch of the KEK: 1 the first time, then the next. Default: 1."`
	SOPINFile    []string `name:"so-pin-file" type:"existingfile" placeholder:"FILE" help:"PIN of the tokens' security officer: one file for all servers, or one per --config."`
	Out          string   `type:"path" placeholder:"DIR" help:"Folder of the ceremony: public keys, and what an interrupted one goes on from."`
	Log          string   `type:"path" placeholder:"FILE" help:"Transcript; it is added to, never changed. Default: transcript.jsonl in --out."`
	Cryptoserver string   `type:"existingfile" placeholder:"FILE" help:"The program cryptoserver. Default: the one beside this program."`
	Describe     bool     `help:"Do nothing; print the steps as a script for servers that no one machine reaches."`
	Yes          bool     `help:"Do not ask."`
}

// Help says more than fits a line.
func (keysCeremonyCmd) Help() string {
	return `Runs cryptoserver keys init on each server, create on the first, import on each: KEK and MAC keys are made in the first server's HSM and travel only wrapped to a transport key of each token. It may be run again after an interruption; what is done stays done. Then restart the cryptoservers one after another and run kluis keys rotate-kek.

HSMs that clone keys by themselves (Luna, nShield, Utimaco, cloud clusters): see --describe.

Example, on real servers:
  kluis keys ceremony --config server1.yaml --config server2.yaml --so-pin-file so-pin --out ceremony

In the demo, a second epoch:
  kluis keys ceremony --state .demo --epoch 2`
}

func (c *keysCeremonyCmd) Run(ctx context.Context, s streams) error {
	if c.Describe {
		names := c.Config
		if len(names) == 0 {
			names = []string{"server1.yaml", "server2.yaml"}
		}
		_, err := fmt.Fprint(s.out, ceremony.Script(c.Epoch, names))
		return err
	}
	switch {
	case c.State != "":
	case len(c.Config) == 0:
		return usage("say which servers: --config SERVER.yaml, once per server (or --state DIR, the demo's)")
	case len(c.SOPINFile) != 1 && len(c.SOPINFile) != len(c.Config):
		return usage("say --so-pin-file once for all servers, or once per --config, in the same order")
	case c.Out == "":
		return usage("say --out DIR, the folder of the ceremony")
	}
	cer := ceremony.Ceremony{Version: version, Epoch: c.Epoch, Dir: c.Out,
		Say: func(format string, args ...any) { fmt.Fprintf(s.err, format+"\n", args...) }}
	var err error
	if cer.Program, err = program(c.Cryptoserver, "cryptoserver"); err != nil {
		return err
	}
	if cer.Servers, err = c.servers(); err != nil {
		return err
	}
	if cer.Dir == "" {
		cer.Dir = demo.CeremonyDir(c.State)
	}
	if over, err := cer.Done(); err != nil {
		return err
	} else if over {
		fmt.Fprintf(s.out, "The ceremony of epoch %d is over: see kluis keys status. The next epoch is made with --epoch %d.\n", c.Epoch, c.Epoch+1)
		return nil
	}
	log := c.Log
	if log == "" {
		log = filepath.Join(cer.Dir, ceremony.TranscriptName)
	}
	names := make([]string, len(cer.Servers))
	for i, srv := range cer.Servers {
		names[i] = srv.Name
	}
	if err := confirm(s, c.Yes, "yes", "yes", "The keys of epoch %d will be made in the HSM of %s and brought to: %s.\nTranscript: %s",
		c.Epoch, names[0], strings.Join(names, ", "), log); err != nil {
		return err
	}
	if err := os.MkdirAll(cer.Dir, 0o700); err != nil {
		return err
	}
	if cer.Log, err = ceremony.OpenTranscript(log); err != nil {
		return err
	}
	err = cer.Run(ctx)
	sum := cer.Log.Sum()
	if err = errors.Join(err, cer.Log.Close()); err != nil {
		return fmt.Errorf("%w\nWhat is done stays done: run the same command again to go on", err)
	}
	fmt.Fprintf(s.out, `The keys of epoch %d are on the tokens of %s.
  %s   for seal_keys_file
  %s   for jwks_file
  %s   SHA-256 %x: write it down beside the signatures
Next: restart the cryptoservers one after another, then kluis keys rotate-kek.
`, c.Epoch, strings.Join(names, ", "), cer.SealKeysFile(), cer.JWKSFile(), log, sum)
	return nil
}

func (c *keysCeremonyCmd) servers() ([]ceremony.Server, error) {
	if c.State != "" {
		return demo.CeremonyServers(c.State)
	}
	servers := make([]ceremony.Server, len(c.Config))
	for i, file := range c.Config {
		pin := c.SOPINFile[min(i, len(c.SOPINFile)-1)]
		var err error
		if servers[i], err = ceremony.NewServer(file, pin); err != nil {
			return nil, err
		}
	}
	return servers, nil
}

// program is one that lies beside this one, or where a flag says.
func program(given, name string) (string, error) {
	if given != "" {
		return given, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not beside this program: build everything first with 'make build'", name)
	}
	return path, nil
}

type keysTranscriptCmd struct {
	File   string `arg:"" type:"existingfile" placeholder:"FILE" help:"The transcript."`
	SHA256 string `name:"sha256" placeholder:"HEX" help:"The SHA-256 that was written down at its end: by it a transcript with the end cut off is found out."`
	JSON   bool   `help:"Print JSON."`
}

func (c *keysTranscriptCmd) Run(s streams) error {
	b, err := os.ReadFile(c.File)
	if err != nil {
		return err
	}
	entries, sum, err := ceremony.Check(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	if got := hex.EncodeToString(sum[:]); c.SHA256 != "" && !strings.EqualFold(c.SHA256, got) {
		return fmt.Errorf("%s: its SHA-256 is %s, not the one given: it was changed, cut off, or gone on with", c.File, got)
	}
	if c.JSON {
		return printJSON(s.out, map[string]any{"entries": entries, "sha256": hex.EncodeToString(sum[:])})
	}
	rows := [][]string{{"N", "AT", "STEP", "SERVER", "RESULT", "FINGERPRINT"}}
	for _, e := range entries {
		result, _, _ := strings.Cut(e.Result, "\n")
		rows = append(rows, []string{fmt.Sprint(e.Number), e.At.Format(time.RFC3339), e.Step, e.Server, result, e.Fingerprint})
	}
	if err := table(s.out, rows); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "SHA-256 %x\n", sum)
	return nil
}
