package main

import (
	"context"
	"os"
	"path/filepath"

	"kluis/cmd/kluis/demo"
)

type demoCmd struct {
	State     string `default:".demo" type:"path" placeholder:"DIR" help:"Folder of everything: database, tokens, certificates, configuration, logs. Created when missing, resumed when not. Default: .demo."`
	ReadyFile string `type:"path" placeholder:"FILE" help:"Write what serves where to FILE (JSON) once everything is ready; rewritten when a process is restarted."`
	Once      bool   `help:"Make one supplier request end to end, print the answer, stop."`
	Module    string `type:"path" placeholder:"FILE" help:"SoftHSM's PKCS#11 module. Default: where Debian installs it."`
}

// Run serves until ctx ends. The other programs are taken from beside this one.
func (c *demoCmd) Run(ctx context.Context, s streams) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return demo.Run(ctx, demo.Options{State: c.State, ReadyFile: c.ReadyFile, Once: c.Once, Module: c.Module,
		BinDir: filepath.Dir(self), Version: version, Stdout: s.out, Stderr: s.err})
}
