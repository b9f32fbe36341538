// A HashiCorp Vault to test against, built from its module. It is shipped nowhere.
//
// The minimal build of it has no database plugins: started as `vault postgresql`, this program is that one.
package main

import (
	"os"
	"time"

	"github.com/hashicorp/vault/command"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/database/dbplugin/v5"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "postgresql" {
		go endWith(os.Getppid())
		dbplugin.ServeMultiplex(postgresql.New)
		return
	}
	os.Exit(command.Run(os.Args[1:]))
}

// The tests kill Vault, and a plugin would outlive that.
func endWith(parent int) {
	for os.Getppid() == parent {
		time.Sleep(time.Second)
	}
	os.Exit(1)
}
