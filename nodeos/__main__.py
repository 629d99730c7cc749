from nodeos.cli import main

main()
